// Notices: short, in a corner, gone after a while; errors stay until somebody closes them.

import { $, make } from "./dom.js";
import { shown } from "./format.js";

const MOST = 4;
const STAYS_MS = 9000;

export function toast(level, text) {
  const region = $("#toasts");
  const note = make("div", "toast");
  note.dataset.level = level;
  const words = make("p", "", shown(text));
  words.setAttribute("dir", "auto");
  const close = make("button", "icon", "✕");
  close.type = "button";
  close.setAttribute("aria-label", "Close the notice");
  close.addEventListener("click", () => note.remove());
  note.append(words, close);
  region.append(note);
  while (region.children.length > MOST) region.firstElementChild.remove();
  if (level !== "error") setTimeout(() => note.remove(), STAYS_MS);
}
