// A small line of recent figures, drawn as SVG.

import { $, put } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120;
const HEIGHT = 30;

export class Spark {
  constructor(figure, what, format) {
    Object.assign(this, { figure, what, format });
    this.svg = document.createElementNS(SVG, "svg");
    this.line = document.createElementNS(SVG, "polyline");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.line.setAttribute("vector-effect", "non-scaling-stroke");
    this.svg.append(this.line);
    figure.append(this.svg);
    this.draw([]);
  }

  draw(values) {
    put($("b", this.figure), values.length ? this.format(values[values.length - 1]) : "–");
    const high = Math.max(...values);
    const low = Math.min(...values);
    // The line fills its height, but noise of a few per cent does not look like a mountain range.
    const range = Math.max(high - low, high * 0.25, 1e-9);
    const base = Math.max(0, (high + low - range) / 2);
    const step = WIDTH / Math.max(1, values.length - 1);
    const points = values.map((value, i) => `${(i * step).toFixed(1)},${(HEIGHT - 2 - ((value - base) / range) * (HEIGHT - 4)).toFixed(1)}`);
    this.line.setAttribute("points", values.length > 1 ? points.join(" ") : "");
    const words = values.length
      ? `last ${values.length} captions: least ${this.format(low)}, most ${this.format(high)}`
      : "no caption yet";
    this.svg.setAttribute("aria-label", `${this.what}, ${words}`);
  }
}
