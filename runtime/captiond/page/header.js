// What stands above the cameras: engine, connection, figures, and below them the board.

import { $, make, put, show } from "./dom.js";
import { count, decimal, milliseconds, seconds, shown, telemetry } from "./format.js";

const ENGINE = {
  loading: ["Loading", "wait", "The model is being loaded."],
  ready: ["Ready", "good", ""],
  restarting: ["Restarting", "bad", "The engine is being restarted."],
  degraded: ["Degraded", "bad", "The engine keeps failing; captions wait."],
  stopped: ["Stopped", "bad", "The engine has been stopped."],
};

const LINK = {
  connecting: ["Connecting", "wait"],
  open: ["Connected", "good"],
  lost: ["No connection", "bad"],
  login: ["Not logged in", "wait"],
};

export class Header {
  constructor() {
    this.retryAtMs = NaN;
    this.words = "connecting";
    this.known = false; // whether the daemon has answered at all
  }

  state(state) {
    this.known = true;
    put($("#model bdi"), state.model ? shown(state.model) : "");
    put($("#version"), `captiond ${shown(state.version)}`);
    this.engine(state.engine);
    const chats = state.chats ?? {};
    const gauges = [
      [Number.isFinite(state.tokens_per_s), decimal(state.tokens_per_s), "tokens/s"],
      [Number.isFinite(state.ttft_ms), milliseconds(state.ttft_ms), "to first token"],
      [chats.running + chats.waiting > 0, `${count(chats.running)} + ${count(chats.waiting)}`, "chats running, waiting"],
    ];
    list($("#gauges"), gauges.filter(([known]) => known).map(([, value, label]) => ({ value, label })));
    list($("#board"), telemetry(state.board));
    this.rulesActive(state.sources.flatMap((source) => source.rules ?? []).filter((rule) => rule.active).length);
  }

  rules(cards) {
    this.rulesActive(cards.flatMap((card) => [...card.source.rules.values()]).filter(Boolean).length);
  }

  // A tab in the background tells of rules by its title.
  rulesActive(active) {
    const title = active > 0 ? `(${active}) captiond` : "captiond";
    if (document.title !== title) document.title = title;
  }

  engine(engine) {
    if (!engine) return;
    const [word, tone, sentence] = ENGINE[engine.status] ?? [shown(engine.status), "wait", ""];
    put($("#engine .words"), `Engine ${word.toLowerCase()}`);
    $("#engine").dataset.tone = tone;
    $("#engine").title = engine.restarts > 0 ? `Restarted ${count(engine.restarts)} times since the daemon started` : "";
    const banner = $("#engine-banner");
    banner.dataset.tone = tone;
    put($("strong", banner), sentence);
    const cause = engine.cause ? ` (${engine.cause})` : "";
    put($("span", banner), engine.message ? shown(engine.message + cause) : shown(engine.cause ?? ""));
    show(banner, engine.status !== "ready");
  }

  link(words, waitMs) {
    this.words = words;
    const [word, tone] = LINK[words];
    put($("#link .words"), word);
    $("#link").dataset.tone = tone;
    this.retryAtMs = words === "lost" ? performance.now() + waitMs : NaN;
    show($("#link-banner"), words === "lost" || (words === "connecting" && !$("#link-banner").hidden));
    put($("#link-banner strong"), this.known ? "The daemon does not answer." : "There is no daemon at this address.");
    this.tick(performance.now());
  }

  tick(nowMs) {
    if ($("#link-banner").hidden) return;
    const wait = (this.retryAtMs - nowMs) / 1000;
    const old = this.known ? "What you see is from before. " : "";
    put($("#link-banner span"), `${old}${wait > 0 ? `Next attempt in ${seconds(wait)}.` : "Trying now …"}`);
  }

  loggedIn() {
    show($("#logout"), true);
  }

  nothing(none) {
    show($("#nothing"), none);
    put($("#nothing .headline"), "No camera is set up");
    put($("#nothing .detail"), "Add a [[source]] to the configuration file and reload the daemon.");
  }
}

function list(node, entries) {
  while (node.children.length > entries.length) node.lastElementChild.remove();
  entries.forEach(({ label, value }, i) => {
    let item = node.children[i];
    if (!item) {
      item = make("li");
      item.append(make("b"), " ", make("span"));
      node.append(item);
    }
    put($("b", item), value);
    put($("span", item), label);
  });
}
