// Which caption a card shows, and with which picture: always a pair.
//
// A fast model writes ten captions a second, which nobody can read: a caption stays for a moment before the next one
// takes its place (all are in the history). A caption comes on with the very frame it is about: its picture is fetched
// while the model still reads the prompt, and waits a little; if it is late, its place is empty, never another frame.

import { frameAddress } from "./api.js";

const DWELL_MS = 400;
const PICTURE_WAIT_MS = 600;

export class Presenter {
  // `changed()` is called when a picture has arrived.
  constructor(name, changed) {
    this.name = name;
    this.changed = changed;
    this.caption = null;
    this.image = null; // of `caption`; null until it is there
    this.since = 0;
    this.next = null; // { caption, image, ready, failed, firstWordMs }
  }

  // Returns whether another caption is shown now.
  step(newest, nowMs) {
    if (this.next && this.next.caption.over && !this.next.caption.done && !this.next.caption.text) this.next = null;
    if (!this.next && newest && newest !== this.caption && nowMs - this.since >= DWELL_MS) this.next = this.#begin(newest);
    const next = this.next;
    if (!next || !(next.caption.text || next.caption.done)) return false;
    next.firstWordMs ??= nowMs;
    if (!next.ready && !next.failed && nowMs - next.firstWordMs < PICTURE_WAIT_MS) return false;
    this.caption = next.caption;
    this.image = next.ready ? next.image : null;
    this.since = nowMs;
    this.next = null;
    return true;
  }

  // How long until a waiting caption may come on, so that the card looks again.
  get waiting() {
    return this.next !== null;
  }

  #begin(caption) {
    const next = { caption, image: new Image(), ready: false, failed: false, firstWordMs: null };
    next.image.alt = "";
    next.image.src = frameAddress(this.name, caption.id, caption.frame);
    next.image.decode().then(
      () => {
        next.ready = true;
        // Late: the text is on already, and this is its picture.
        if (this.caption === caption) this.image = next.image;
        this.changed();
      },
      () => {
        next.failed = true;
        this.changed();
      },
    );
    return next;
  }
}
