// Keyboard shortcuts, the player below the list, and marking without a page reload. Without this script, forms and links
// offer the same actions.
"use strict";

const SKIP_S = 5;
const rows = [...document.querySelectorAll(".rows tbody tr")];
const dock = document.getElementById("dock");
const song = document.querySelector("main.song");
const help = document.getElementById("help");
const keysOn = document.getElementById("keys-on");
const player = dock ? dock.querySelector("audio") : document.querySelector("song-row audio");

const say = (text) => {
  document.getElementById("said").textContent = text;
};

// --- row with keyboard focus

const current = () => document.activeElement?.closest("tr[data-row]") ?? null;

const go = (step) => {
  const at = rows.indexOf(current());
  const next = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(Math.max(at + step, 0), rows.length - 1)];
  next?.querySelector("th a").focus();
  next?.scrollIntoView({ block: "nearest" });
};

// --- playback

const show = (row, playing) => {
  for (const other of rows) {
    const here = other === row && playing;
    other.classList.toggle("playing", here);
    const button = other.querySelector(".play");
    button.setAttribute("aria-label", `${here ? "Pause" : "Play"} ${other.dataset.name}`);
    button.firstElementChild.textContent = here ? "❚❚" : "▶";
  }
};

const heard = () => rows.find((row) => player.getAttribute("src") === row.querySelector(".play").dataset.src);

const toggle = (row) => {
  const source = row?.querySelector(".play").dataset.src ?? player?.getAttribute("src");
  if (!player || !source) return;
  if (player.getAttribute("src") !== source) {
    player.src = source;
    dock.hidden = false;
    document.getElementById("playing").textContent = row.dataset.name;
    player.setAttribute("aria-label", `Player of ${row.dataset.name}`);
  }
  if (player.paused) player.play().catch(() => {});
  else player.pause();
};

if (dock) {
  for (const row of rows) row.querySelector(".play").addEventListener("click", () => toggle(row));
  player.addEventListener("play", () => show(heard(), true));
  player.addEventListener("pause", () => show(heard(), false));
  player.addEventListener("error", async () => {
    show(heard(), false);
    const answer = await fetch(player.src, { headers: { Accept: "application/json" } }).catch(() => null);
    const problem = answer && !answer.ok ? (await answer.json()).problem : "This browser cannot play it.";
    document.getElementById("playing").textContent = problem;
    say(problem);
  });
}

// --- marks

const chip = (kind, note) => {
  if (kind === "none") return song ? ["none"] : [];
  const icon = Object.assign(document.createElement("span"), { textContent: kind === "keep" ? "✓ " : "✕ " });
  icon.setAttribute("aria-hidden", "true");
  const made = Object.assign(document.createElement("span"), { className: `chip ${kind}` });
  made.append(icon, kind);
  if (!note) return [made];
  const pencil = Object.assign(document.createElement("span"), { className: "note", title: note, textContent: " ✎" });
  pencil.setAttribute("aria-hidden", "true");
  return [made, pencil, Object.assign(document.createElement("span"), { className: "unseen", textContent: `, note: ${note}` })];
};

// Changing a row's mark keeps its note; in the list, `n` edits the note.
const mark = async (element, kind, note = song ? document.getElementById("note").value.trim() : element?.dataset.note) => {
  if (!element) return say("Go to a row first: j or k");
  const { row, name } = element.dataset;
  const body = new URLSearchParams({ row_id: row, mark: kind, note, token: document.body.dataset.token });
  const answer = await fetch("/mark", { method: "POST", body, headers: { Accept: "application/json" } }).catch(() => null);
  if (!answer?.ok) return say(`${name} could not be marked: reload the page`);
  element.dataset.mark = kind === "none" ? "" : kind;
  element.dataset.note = kind === "none" ? "" : note;
  element.querySelector(".mark").replaceChildren(...chip(kind, note));
  say(kind === "none" ? `${name}: no mark` : `${name}: marked ${kind}${note ? `, note: ${note}` : ""}`);
};

const noting = document.getElementById("noting");
const noted = document.getElementById("noted");
let annotated = null;

const annotate = (row) => {
  if (!row) return say("Go to a row first: j or k");
  if (!row.dataset.mark) return say("Mark the row first: y or d");
  annotated = row;
  document.getElementById("noting-title").textContent = `Note on ${row.dataset.name}, marked ${row.dataset.mark}`;
  noted.value = row.dataset.note;
  noting.returnValue = "";
  noting.showModal();
};

noting?.addEventListener("close", () => {
  if (noting.returnValue === "save") mark(annotated, annotated.dataset.mark, noted.value.trim());
});

const all = document.getElementById("all");
const bulk = document.querySelector(".bulk");
const boxes = [...document.querySelectorAll("input[name=row_id][type=checkbox]")];
const count = () => {
  const chosen = boxes.filter((box) => box.checked).length;
  document.getElementById("selected").textContent = chosen === 1 ? "1 row selected" : `${chosen} rows selected`;
  bulk.hidden = !chosen;
  all.checked = chosen === boxes.length;
  all.indeterminate = chosen > 0 && chosen < boxes.length;
};
if (all) {
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    count();
  });
  for (const box of boxes) box.addEventListener("change", count);
  count();
}

if (matchMedia("(max-width: 820px)").matches) // narrow screen: collapse the facets above the rows
  for (const facet of document.querySelectorAll(".facets > details:not(:has([aria-current]))")) facet.open = false;

// --- keyboard shortcuts

const followed = (rel) => document.querySelector(`.pager a[rel=${rel}]`)?.click();

const KEYS = {
  j: () => go(1),
  ArrowDown: () => go(1),
  k: () => go(-1),
  ArrowUp: () => go(-1),
  " ": () => toggle(current()),
  ArrowLeft: () => player && (player.currentTime -= SKIP_S),
  ArrowRight: () => player && (player.currentTime += SKIP_S),
  y: () => mark(song ?? current(), "keep"),
  d: () => mark(song ?? current(), "drop"),
  u: () => mark(song ?? current(), "none"),
  x: () => current()?.querySelector("input[type=checkbox]").click(),
  n: () => (song ? document.getElementById("note").focus() : annotate(current())),
  "/": () => document.getElementById("q")?.focus(),
  "[": () => followed("prev"),
  "]": () => followed("next"),
  Escape: () => song && document.querySelector(".trail a").click(),
  "?": () => help.showModal(),
};
const LIST_ONLY = ["j", "k", "ArrowDown", "ArrowUp", "x", "/", "[", "]"];
const ALWAYS = ["Escape"]; // other shortcuts can be switched off, since they interfere with speech input

document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || help.open || noting?.open) return;
  if (target.closest("textarea, select, input:not([type=checkbox])")) {
    if (key === "Escape") target.blur();
    return;
  }
  if (target.closest("audio, [role=slider], .lyrics ol")) return; // these handle keys themselves
  if (key === " " && target.closest("button, summary, input")) return;
  if (!(key in KEYS) || (song && LIST_ONLY.includes(key)) || (!keysOn.checked && !ALWAYS.includes(key))) return;
  event.preventDefault();
  KEYS[key]();
});

document.querySelector("[data-help]").addEventListener("click", () => help.showModal());
keysOn.checked = localStorage.getItem("keys") !== "off";
keysOn.addEventListener("change", () => localStorage.setItem("keys", keysOn.checked ? "on" : "off"));
