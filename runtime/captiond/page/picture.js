// The newest frames of a source, fetched one after the other. Not MJPEG: that would hold one of the browser's six
// connections for each camera, and goes on when nobody looks.

import { picture } from "./api.js";

const FASTEST_MS = 160;
const AFTER_FAILURE_MS = 1500;
const STILL = matchMedia("(prefers-reduced-motion: reduce)");

export class LivePicture {
  // `shown(seq, ageMs)` after each frame; `gone()` when there is none.
  constructor(image, name, shown, gone) {
    Object.assign(this, { image, name, shown, gone });
    this.address = null;
    this.stopper = null;
  }

  // How long to wait between two frames: shared fairly by the cameras in view.
  run(wanted, cameras) {
    this.waitMs = STILL.matches ? 2000 : FASTEST_MS * Math.max(1, cameras / 2);
    if (wanted && !this.stopper) this.#loop();
    else if (!wanted && this.stopper) this.#stop();
  }

  #stop() {
    this.stopper?.abort();
    this.stopper = null;
  }

  // Forget the frame: an old picture must not pass for a live one.
  clear() {
    this.#stop();
    this.image.removeAttribute("src");
    if (this.address) URL.revokeObjectURL(this.address);
    this.address = null;
  }

  async #loop() {
    const stopper = new AbortController();
    this.stopper = stopper;
    while (!stopper.signal.aborted) {
      const began = performance.now();
      let rest = this.waitMs;
      try {
        await this.#one(stopper.signal);
      } catch {
        if (stopper.signal.aborted) return;
        this.clear();
        this.gone();
        // clear() stops this loop as well: begin again after a while, unless somebody else has.
        this.stopper = stopper;
        rest = AFTER_FAILURE_MS;
        await pause(rest);
        if (this.stopper === stopper) this.#loop();
        return;
      }
      await pause(Math.max(20, rest - (performance.now() - began)));
    }
  }

  async #one(signal) {
    const side = Math.min(1280, Math.ceil(((this.image.parentElement.clientWidth || 640) * devicePixelRatio) / 160) * 160);
    const { blob, seq, ageMs } = await picture(this.name, side, signal);
    if (signal.aborted) return;
    const address = URL.createObjectURL(blob);
    const before = this.address;
    this.address = address;
    this.image.src = address;
    try {
      await this.image.decode();
    } finally {
      if (before) URL.revokeObjectURL(before);
    }
    if (!signal.aborted) this.shown(seq, ageMs);
  }
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
