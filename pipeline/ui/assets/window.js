// props.value is {peaks, duration, start, end} in seconds, or null without a source.
const STEP = 0.1, SHORTEST = 0.05;
const window_ = element.querySelector(".window");
const stage = element.querySelector(".stage");
const region = element.querySelector(".region");
const handles = Object.fromEntries(
  [...element.querySelectorAll(".handle")].map((handle) => [handle.dataset.edge, handle])
);
let drawn = null;

const percent = (seconds) => `${(100 * clamp(seconds / props.value.duration, 0, 1)).toFixed(3)}%`;
const hundredths = (seconds) => Math.round(seconds * 100) / 100;
const secondsAt = (event) => {
  const box = stage.getBoundingClientRect();
  return clamp((event.clientX - box.left) / box.width, 0, 1) * props.value.duration;
};

const render = () => {
  const value = props.value;
  window_.hidden = !value;
  element.querySelector(".empty").hidden = Boolean(value);
  if (!value) return;
  if (drawn !== value.peaks.join()) {
    drawn = value.peaks.join();
    drawBars(element.querySelector("svg"), value.peaks);
    element.querySelector(".full").textContent = clock(value.duration);
  }
  region.style.left = percent(value.start);
  region.style.width = `calc(${percent(value.end)} - ${percent(value.start)})`;
  element.querySelector(".length").textContent = `${clock(value.start)} – ${clock(value.end)}`;
  for (const [edge, handle] of Object.entries(handles)) {
    handle.style.left = percent(value[edge]);
    handle.setAttribute("aria-valuemin", "0");
    handle.setAttribute("aria-valuemax", value.duration);
    handle.setAttribute("aria-valuenow", value[edge]);
    handle.setAttribute("aria-valuetext", `${value[edge]} s`);
  }
};

const choose = (start, end) => {
  props.value = { ...props.value, start: hundredths(start), end: Math.min(hundredths(end), props.value.duration) };
  render();
  trigger("input");
};

const moveEdge = (edge, seconds) => {
  const { start, end, duration } = props.value;
  if (edge === "start") choose(clamp(seconds, 0, end - SHORTEST), end);
  else choose(start, clamp(seconds, start + SHORTEST, duration));
};

const moveWindow = (start, length) => {
  const from = clamp(start, 0, props.value.duration - length);
  choose(from, from + length);
};

// Dragging a handle moves that edge, dragging the window moves it, and dragging elsewhere selects a new window.
const dragFrom = (event) => {
  const origin = secondsAt(event);
  const { start, end } = props.value;
  if (event.target.dataset.edge) return (now) => moveEdge(event.target.dataset.edge, now);
  const whole = start <= 0 && end >= props.value.duration;
  if (!whole && origin > start && origin < end) return (now) => moveWindow(start + now - origin, end - start);
  return (now) => Math.abs(now - origin) >= SHORTEST && choose(Math.min(origin, now), Math.max(origin, now));
};

stage.addEventListener("pointerdown", (event) => {
  if (!props.value || event.button !== 0) return;
  event.preventDefault();
  const drag = dragFrom(event);
  const move = (moved) => drag(secondsAt(moved));
  event.target.focus?.();
  stage.setPointerCapture(event.pointerId);
  stage.addEventListener("pointermove", move);
  for (const over of ["pointerup", "pointercancel"])
    stage.addEventListener(over, () => stage.removeEventListener("pointermove", move), { once: true });
});

stage.addEventListener("keydown", (event) => {
  const edge = event.target.dataset.edge;
  if (!edge) return;
  const now = props.value[edge], step = event.shiftKey ? 10 * STEP : STEP;
  const target = {
    ArrowLeft: now - step, ArrowDown: now - step, ArrowRight: now + step, ArrowUp: now + step,
    Home: 0, End: props.value.duration,
  }[event.key];
  if (target === undefined) return;
  event.preventDefault();
  moveEdge(edge, target);
});

watch("value", render);
render();
