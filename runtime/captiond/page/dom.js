// Small things that every part of the page does with the document.

export const $ = (selector, root = document) => root.querySelector(selector);

// Text as text, and only when it is another one: an untouched node costs no layout and keeps a selection.
export function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

export function clone(id) {
  return $(`#${id}`).content.firstElementChild.cloneNode(true);
}

export function make(tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

// Preferences live in the browser; without storage they last as long as the page.
const kept = new Map();

export function remember(name, value) {
  kept.set(name, String(value));
  try {
    localStorage.setItem(`captiond.${name}`, String(value));
  } catch {
    // switched off or full
  }
}

export function remembered(name) {
  try {
    return localStorage.getItem(`captiond.${name}`) ?? kept.get(name) ?? null;
  } catch {
    return kept.get(name) ?? null;
  }
}

// Dialogs are the browser's own: they keep the focus inside and give it back, and close with Escape.
export function open(dialog) {
  if (!dialog.open) dialog.showModal();
}
