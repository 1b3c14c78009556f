// Words and figures as people read them. Everything that comes from a model, a peer or a user passes `shown` first.

export const MAX_SHOWN_CHARS = 20000;

// Terminal escapes become visible signs, and characters that turn the direction of a line are left out, so that no
// caption can look like something else. (Markup needs nothing: the page only ever sets text, never HTML.)
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;
const TURNING = /[\u202a-\u202e\u2066-\u2069]/g;

export function shown(text) {
  const words = String(text ?? "");
  const cut = words.length > MAX_SHOWN_CHARS ? `${words.slice(0, MAX_SHOWN_CHARS - 1)}…` : words;
  return cut.replace(CONTROLS, sign).replace(TURNING, "");
}

function sign(character) {
  const code = character.charCodeAt(0);
  if (code === 0x7f) return "\u2421";
  return code < 0x20 ? String.fromCharCode(0x2400 + code) : "\ufffd";
}

export function count(value) {
  return Number.isFinite(value) ? Math.round(value).toLocaleString("en") : "–";
}

export function decimal(value) {
  if (!Number.isFinite(value)) return "–";
  if (value >= 100) return Math.round(value).toLocaleString("en");
  return value >= 10 ? value.toFixed(1) : String(Number(value.toPrecision(2)));
}

export function milliseconds(value) {
  if (!Number.isFinite(value)) return "–";
  return value < 1000 ? `${Math.round(value)} ms` : seconds(value / 1000);
}

// An age or a wait, in a width that hardly changes while it counts.
export function seconds(value) {
  if (!Number.isFinite(value)) return "–";
  const s = Math.max(0, value);
  if (s < 10) return `${s.toFixed(1)} s`;
  if (s < 100) return `${Math.round(s)} s`;
  if (s < 6000) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
}

export function clock(unix) {
  return new Date(unix * 1000).toLocaleTimeString("en-GB");
}

export function dateAndClock(unix) {
  const date = new Date(unix * 1000);
  return `${date.toLocaleDateString("sv")} ${date.toLocaleTimeString("en-GB")}`;
}

const UNITS = [
  [/_(celsius|c)$/, (v) => `${decimal(v)} °C`],
  [/_mw$/, (v) => `${decimal(v / 1000)} W`],
  [/_(watts?|w)$/, (v) => `${decimal(v)} W`],
  [/_percent$/, (v) => `${Math.round(v)} %`],
  [/_(share|ratio)$/, (v) => `${Math.round(v * 100)} %`],
  [/_mib$/, (v) => `${count(v)} MiB`],
  [/_bytes$/, (v) => (v >= 2 ** 30 ? `${decimal(v / 2 ** 30)} GiB` : `${count(v / 2 ** 20)} MiB`)],
  [/_mhz$/, (v) => `${count(v)} MHz`],
  [/_hz$/, (v) => `${count(v / 1e6)} MHz`],
  [/_rpm$/, (v) => `${count(v)} rpm`],
  [/_v$/, (v) => `${decimal(v)} V`],
  [/_s$/, (v) => seconds(v)],
];

// Board telemetry is whatever the board offers: nested names and values. The unit is the end of the name.
export function telemetry(value, name = "", found = [], depth = 0) {
  if (value === null || value === undefined || depth > 3 || found.length >= 24) return found;
  if (typeof value === "object") {
    for (const [key, inner] of Object.entries(value)) telemetry(inner, name ? `${name}_${key}` : key, found, depth + 1);
    return found;
  }
  const unit = typeof value === "number" && UNITS.find(([end]) => end.test(name));
  const label = (unit ? name.replace(unit[0], "") : name).replaceAll("_", " ") || name;
  found.push({ label: shown(label), value: unit ? unit[1](value) : typeof value === "number" ? decimal(value) : shown(value) });
  return found;
}
