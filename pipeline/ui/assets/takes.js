// props.value is a list of {title, name, file, peaks, duration, parameters}, oldest first.
// One deck plays at a time; swapping continues on the other deck at the same position.
const decks = Object.fromEntries(
  [...element.querySelectorAll(".deck")].map((section) => {
    const find = (selector) => section.querySelector(selector);
    return [section.dataset.side, {
      section, take: null, audio: find("audio"), select: find("select"), wave: find(".wave"),
      played: find(".played"), download: find(".download"), recipe: find(".recipe"),
    }];
  })
);
const play = element.querySelector(".play");
const swap = element.querySelector(".swap");
const time = element.querySelector(".time");
let heard = "A", known = 0;

const other = (side) => (side === "A" ? "B" : "A");
const playing = () => !decks[heard].audio.paused;
const length = (deck) => props.value[deck.take]?.duration ?? 0;
const json = (take) => JSON.stringify(take.parameters, null, 2);

const showPosition = () => {
  for (const deck of Object.values(decks)) {
    const share = length(deck) ? clamp(deck.audio.currentTime / length(deck), 0, 1) : 0;
    deck.played.style.clipPath = `inset(0 ${100 * (1 - share)}% 0 0)`;
    deck.wave.setAttribute("aria-valuemin", "0");
    deck.wave.setAttribute("aria-valuemax", length(deck));
    deck.wave.setAttribute("aria-valuenow", deck.audio.currentTime.toFixed(1));
    deck.wave.setAttribute("aria-valuetext", clock(deck.audio.currentTime));
  }
  time.textContent = `${clock(decks[heard].audio.currentTime)} / ${clock(length(decks[heard]))}`;
};

const showState = () => {
  play.textContent = playing() ? "Pause" : "Play";
  play.setAttribute("aria-label", `${play.textContent} ${heard}`);
  for (const [side, deck] of Object.entries(decks)) {
    deck.section.classList.toggle("heard", side === heard);
    deck.section.querySelector(".side").setAttribute("aria-pressed", side === heard);
  }
  const take = props.value[decks[heard].take];
  element.querySelector("pre").textContent = take ? json(take) : "";
  showPosition();
};

const follow = () => {
  showPosition();
  if (playing()) requestAnimationFrame(follow);
};

const start = () => decks[heard].audio.play().then(follow).catch(() => {});

const seek = (side, seconds) => {
  for (const deck of Object.values(decks)) deck.audio.currentTime = clamp(seconds, 0, length(deck));
  showPosition();
};

const hear = (side) => {
  if (side === heard || decks[side].take === null) return;
  const from = decks[heard].audio, goOn = playing();
  from.pause();
  heard = side;
  decks[side].audio.currentTime = Math.min(from.currentTime, length(decks[side]));
  if (goOn) start();
  showState();
};

const load = (side, index) => {
  const deck = decks[side], take = props.value[index];
  const position = deck.audio.currentTime, goOn = side === heard && playing();
  deck.take = index;
  deck.select.value = String(index);
  deck.audio.src = take.file.url;
  deck.audio.currentTime = Math.min(position, take.duration);
  for (const svg of deck.section.querySelectorAll("svg")) drawBars(svg, take.peaks);
  deck.download.href = take.file.url;
  deck.download.download = `${take.name}.wav`;
  URL.revokeObjectURL(deck.recipe.href);
  deck.recipe.href = URL.createObjectURL(new Blob([json(take)], { type: "application/json" }));
  deck.recipe.download = `${take.name}.json`;
  if (goOn) start();
  showState();
};

const refresh = () => {
  const takes = props.value;
  element.querySelector(".empty").hidden = takes.length > 0;
  element.querySelector(".decks").hidden = takes.length === 0;
  decks.B.section.hidden = swap.hidden = takes.length < 2;
  if (takes.length <= known) return;
  known = takes.length;
  for (const deck of Object.values(decks))
    deck.select.replaceChildren(...takes.map((take, i) => new Option(take.title, String(i))).reverse());
  decks[heard].audio.pause();
  const before = decks[heard].take;
  if (before !== null) load("B", before);
  heard = "A";
  load("A", takes.length - 1);
  seek("A", 0);
};

for (const [side, deck] of Object.entries(decks)) {
  deck.section.querySelector(".side").addEventListener("click", () => hear(side));
  deck.section.querySelector(".source").addEventListener("click", () => trigger("source", { take: deck.take }));
  deck.select.addEventListener("change", () => load(side, Number(deck.select.value)));
  for (const change of ["play", "pause", "ended"]) deck.audio.addEventListener(change, showState);
  deck.audio.addEventListener("seeked", showPosition);
  deck.wave.addEventListener("pointerdown", (event) => {
    const box = deck.wave.getBoundingClientRect();
    hear(side);
    seek(side, ((event.clientX - box.left) / box.width) * length(deck));
  });
  deck.wave.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    seek(side, deck.audio.currentTime + step * (event.shiftKey ? 5 : 1));
  });
}
play.addEventListener("click", () => (playing() ? decks[heard].audio.pause() : start()));
swap.addEventListener("click", () => hear(other(heard)));

// The swap key (X) works anywhere on the page except in text fields.
const pressed = (event) => {
  if (!element.isConnected) return document.removeEventListener("keydown", pressed);
  const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (!typing && !event.ctrlKey && !event.metaKey && !event.altKey && event.key.toLowerCase() === "x") hear(other(heard));
};
document.addEventListener("keydown", pressed);

watch("value", refresh);
refresh();
