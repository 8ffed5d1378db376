// Player of one row: waveform playhead and lyrics follow the audio, and clicking them seeks.
// The audio may be an excerpt; all times on the page are seconds from the start of the song.
"use strict";

const STEP_S = 2; // seek step of an arrow key
const still = matchMedia("(prefers-reduced-motion: reduce)");
const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    target.draw();
  }
}, { rootMargin: "400px" });

const clock = (seconds) => {
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
};

// Waveform bars as one SVG path, in a viewBox `peaks.length` wide and 2 high.
const bars = (peaks) =>
  peaks.map((peak, i) => {
    const half = Math.max(peak, 0.015);
    return `M${i + 0.15},${(1 - half).toFixed(3)}h.7v${(2 * half).toFixed(3)}h-.7Z`;
  }).join("");

const timed = (element) => ({ element, start: +element.dataset.start, end: +element.dataset.end });

class SongRow extends HTMLElement {
  connectedCallback() {
    const data = this.querySelector("script.sound");
    if (!data || this.sound) return;
    this.sound = JSON.parse(data.textContent);
    this.audio = this.querySelector("audio");
    this.wave = this.querySelector(".wave");
    this.lyrics = this.querySelector(".lyrics ol");
    this.lines = [...this.querySelectorAll(".lyrics li[data-start]")].map((line) => ({
      ...timed(line),
      words: [...line.querySelectorAll(".words [data-start]")].map(timed),
    }));
    this.listen();
    seen.observe(this);
  }

  disconnectedCallback() {
    this.audio?.pause();
    seen.unobserve(this);
  }

  get position() {
    return this.sound.start_s + this.audio.currentTime;
  }

  listen() {
    const { audio, wave } = this;
    audio.addEventListener("play", () => {
      for (const other of document.querySelectorAll("song-row audio")) if (other !== audio) other.pause();
      this.follow();
    });
    for (const event of ["timeupdate", "seeking", "seeked"]) audio.addEventListener(event, () => this.show());
    for (const line of this.lines) {
      line.element.querySelector("button").addEventListener("click", () => {
        this.seek(line.start);
        audio.play();
      });
    }
    if (!wave) return;
    const seekTo = (event) => {
      const box = wave.getBoundingClientRect();
      this.seek(this.sound.start_s + ((event.clientX - box.left) / box.width) * this.sound.length_s);
    };
    wave.addEventListener("pointerdown", (event) => {
      wave.setPointerCapture(event.pointerId);
      seekTo(event);
    });
    wave.addEventListener("pointermove", (event) => wave.hasPointerCapture(event.pointerId) && seekTo(event));
    wave.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    const { start_s, length_s } = this.sound;
    const to = {
      ArrowLeft: this.position - STEP_S,
      ArrowDown: this.position - STEP_S,
      ArrowRight: this.position + STEP_S,
      ArrowUp: this.position + STEP_S,
      Home: start_s,
      End: start_s + length_s,
    }[event.key];
    if (to !== undefined) this.seek(to);
    else if (event.key === " " || event.key === "Enter") this.audio.paused ? this.audio.play() : this.audio.pause();
    else return;
    event.preventDefault();
  }

  seek(position) {
    const { start_s, length_s } = this.sound;
    this.audio.currentTime = Math.min(Math.max(position - start_s, 0), length_s);
    this.show();
  }

  // Update every animation frame while playing; with prefers-reduced-motion only on `timeupdate`, 4 times a second.
  follow() {
    if (this.audio.paused || still.matches) return;
    this.show();
    requestAnimationFrame(() => this.follow());
  }

  show() {
    const { position, sound, wave } = this;
    const share = Math.min(Math.max((position - sound.start_s) / sound.length_s, 0), 1);
    this.querySelector(".clock").value = clock(position);
    if (wave) {
      const playhead = wave.querySelector(".playhead");
      playhead.hidden = false;
      playhead.style.left = `${share * 100}%`;
      wave.querySelector(".played").style.clipPath = `inset(0 ${(1 - share) * 100}% 0 0)`;
      wave.setAttribute("aria-valuenow", position.toFixed(1));
      wave.setAttribute("aria-valuetext", clock(position));
    }
    this.mark(position);
  }

  // Highlight the current line and word; if lines overlap, the one that began last.
  mark(position) {
    const isNow = ({ start, end }) => start <= position && position < end;
    const now = this.lines.findLast(isNow);
    for (const line of this.lines) {
      const current = line === now;
      if (current && !line.element.classList.contains("now")) this.scroll(line.element);
      line.element.classList.toggle("now", current);
      current ? line.element.setAttribute("aria-current", "true") : line.element.removeAttribute("aria-current");
      const word = current && line.words.findLast(isNow);
      for (const other of line.words) other.element.classList.toggle("now", other === word);
    }
  }

  scroll(line) {
    const top = line.offsetTop - (this.lyrics.clientHeight - line.offsetHeight) / 2;
    this.lyrics.scrollTo({ top, behavior: still.matches ? "auto" : "smooth" });
  }

  async draw() {
    const drawing = this.querySelector(".bars");
    if (!drawing) return;
    let { peaks, peaks_src: source } = this.sound;
    if (!peaks.length && source) {
      const answer = await fetch(source).catch(() => null);
      peaks = answer?.ok ? await answer.json() : [];
    }
    drawing.setAttribute("viewBox", `0 0 ${Math.max(peaks.length, 1)} 2`);
    for (const path of drawing.querySelectorAll("path")) path.setAttribute("d", bars(peaks));
  }
}

customElements.define("song-row", SongRow);
