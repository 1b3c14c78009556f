// What a screen reader is told: finished captions, not tokens, and no more of them than can be listened to.

import { make, remember, remembered } from "./dom.js";
import { shown } from "./format.js";

const APART_MS = 4000;
const KEPT = 6;

export class Announcer {
  constructor(region) {
    this.region = region;
    this.on = remembered("speak") !== "false";
    this.last = new Map(); // source → what was said last
    this.waiting = new Map(); // source → newest caption that was not said yet
    this.nextMs = 0;
  }

  set(on) {
    this.on = on;
    remember("speak", on);
  }

  caption(source, text) {
    if (this.on && this.last.get(source) !== text) this.waiting.set(source, text);
  }

  tick(nowMs) {
    if (this.waiting.size === 0 || nowMs < this.nextMs) return;
    const [source, text] = this.waiting.entries().next().value;
    this.waiting.delete(source);
    this.last.set(source, text);
    this.nextMs = nowMs + APART_MS;
    this.region.append(make("p", "", `${shown(source)}: ${shown(text)}`));
    while (this.region.children.length > KEPT) this.region.firstElementChild.remove();
  }

  forget(source) {
    this.last.delete(source);
    this.waiting.delete(source);
  }
}
