// What the page knows of a source, made from /api/state and events. No DOM here, and nothing that grows without bound.

export const HISTORY_ROWS = 40;
export const SAMPLES = 90;
const EVENTS = 120;
const MAX_TEXT_CHARS = 24000;

const keyOf = (event) => `${event.caption}/${event.frame.t_capture_ns}`;

export class Caption {
  constructor(id, frame, promptId, prompt) {
    this.id = id;
    this.frame = frame;
    this.promptId = promptId;
    this.prompt = prompt;
    this.text = "";
    this.index = -1; // number of the last token in `text`
    this.done = null; // the event of its end
    this.over = false; // nothing more will come: finished, failed, superseded or cut off
  }

  // Captions are numbered anew when the daemon restarts, so a number alone names none.
  get key() {
    return keyOf({ caption: this.id, frame: this.frame });
  }

  add(text, index) {
    if (index <= this.index || this.over) return; // came with /api/state already
    this.index = index;
    if (this.text.length < MAX_TEXT_CHARS) this.text += text;
  }

  finish(event) {
    this.text = event.text;
    this.done = event;
    this.over = true;
  }

  static of(event) {
    const caption = new Caption(event.caption, event.frame, event.prompt_id, event.prompt);
    caption.finish(event);
    return caption;
  }
}

export class Source {
  constructor(name) {
    this.name = name;
    this.facts = {};
    this.rules = new Map();
    this.newest = null; // the caption that was begun last
    this.trouble = "";
    this.retryAtMs = NaN;
    this.events = []; // finished captions, oldest first
    this.rows = []; // the history as it is shown, newest first
    this.speeds = [];
    this.firsts = [];
    this.historyVersion = 0;
  }

  // /api/state knows everything but the history.
  sync(facts, nowMs) {
    this.facts = facts;
    this.rules = new Map((facts.rules ?? []).map((rule) => [rule.name, Boolean(rule.active)]));
    this.retryAtMs = Number.isFinite(facts.retry_in_s) ? nowMs + facts.retry_in_s * 1000 : NaN;
    if (facts.caption) this.#ended(facts.caption);
    if (!facts.live) return;
    const { caption: id, frame, prompt_id: promptId, prompt, text, index } = facts.live;
    const running = new Caption(id, frame, promptId, prompt);
    if (this.#isNewer(frame)) this.#begin(running);
    if (this.newest.key !== running.key || this.newest.done || index < this.newest.index) return;
    Object.assign(this.newest, { text, index, over: false });
  }

  apply(event, nowMs) {
    const running = this.newest && this.newest.id === event.caption && !this.newest.over ? this.newest : null;
    if (event.type === "caption_started") {
      if (this.newest?.key !== keyOf(event)) this.#begin(new Caption(event.caption, event.frame, event.prompt_id, event.prompt));
    } else if (event.type === "caption_delta") {
      running?.add(event.text, event.index);
    } else if (event.type === "caption") {
      this.#ended(event);
      this.trouble = "";
      this.facts.caption = event;
      this.remember(event);
    } else if (event.type === "caption_failed") {
      if (running) running.over = true;
      this.trouble = `${event.error}: ${event.message}`;
    } else if (event.type === "source") {
      const { status, cause, message, attempt } = event;
      Object.assign(this.facts, { status, cause, message, attempt });
      this.retryAtMs = event.retry_in_s === null ? NaN : nowMs + event.retry_in_s * 1000;
    } else if (event.type === "rule") {
      this.rules.set(event.rule, event.active);
    }
  }

  #begin(caption) {
    if (this.newest) this.newest.over = true;
    this.newest = caption;
  }

  #ended(event) {
    if (this.#isNewer(event.frame)) this.#begin(Caption.of(event));
    else if (this.newest.key === keyOf(event) && !this.newest.done) this.newest.finish(event);
  }

  // Answers of /api/state and events overtake each other: what is older than what is here changes nothing.
  #isNewer(frame) {
    return this.newest === null || frame.capture_unix > this.newest.frame.capture_unix;
  }

  remember(event) {
    if (this.events.length && keyOf(this.events[this.events.length - 1]) === keyOf(event)) return; // known already
    this.events.push(event);
    if (this.events.length > EVENTS) this.events.shift();
    this.#fold(event);
    this.historyVersion += 1;
  }

  // Equal captions that follow one another are one row, or a quiet scene would fill the list with one sentence.
  #fold(event) {
    const top = this.rows[0];
    if (top && top.event.text === event.text && top.event.prompt_id === event.prompt_id) {
      top.count += 1;
      top.last = event;
    } else {
      this.rows.unshift({ key: keyOf(event), event, last: event, count: 1 });
      this.rows.length = Math.min(this.rows.length, HISTORY_ROWS);
    }
    for (const [series, value] of [[this.speeds, event.tokens_per_s], [this.firsts, event.ttft_ms]]) {
      if (Number.isFinite(value)) series.push(value);
      if (series.length > SAMPLES) series.shift();
    }
  }

  // The daemon's list fills the gaps of what was seen here; both may know captions that the other does not.
  history(events) {
    const all = new Map([...this.events, ...events].map((event) => [keyOf(event), event]));
    this.events = [...all.values()].sort((a, b) => a.frame.capture_unix - b.frame.capture_unix).slice(-EVENTS);
    const oldest = this.events[0]?.frame.capture_unix ?? Infinity;
    const earlier = this.rows.filter((row) => row.last.frame.capture_unix < oldest);
    for (const kept of [this.rows, this.speeds, this.firsts]) kept.length = 0;
    this.events.forEach((event) => this.#fold(event));
    this.rows = [...this.rows, ...earlier].slice(0, HISTORY_ROWS);
    this.historyVersion += 1;
  }

  // The stream of events is gone: what was being written will not be finished here.
  cutOff() {
    if (this.newest) this.newest.over = true;
  }
}
