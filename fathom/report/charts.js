/* A small chart library: line charts with a shared cursor, stacked shares, intervals, and heat maps. No dependencies.
   Texts reach the page through textContent only; nothing here parses HTML. */

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "css") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/* numbers */
function show(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "%") return `${(100 * value).toFixed(1)}\u202f%`;
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6) return `${trim((value / 1e6).toFixed(2))} M`;
  if (size >= 1e4) return `${trim((value / 1e3).toFixed(1))} k`;
  if (size >= 100) return trim(value.toFixed(1));
  if (size >= 1) return trim(value.toFixed(3));
  if (size >= 1e-3) return value.toFixed(size >= 0.1 ? 3 : 4);
  return value.toExponential(1).replace(".0e", "e").replace("e-", "e−");
}
const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
const tickLabel = (value) => { const text = show(value); return text.includes("e") || text.includes(" ") ? text : trim(Number(value.toPrecision(6)).toString()); };
const minus = (text) => String(text).replace("-", "−");
const whole = (value) => Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, "\u202f");
function duration(seconds) {
  if (seconds < 60) return `${seconds < 10 ? trim(seconds.toFixed(1)) : Math.round(seconds)} s`;
  const s = Math.round(seconds), h = Math.floor(s / 3600), m = Math.floor((s % 3600) / 60);
  if (h >= 48) return `${Math.floor(h / 24)} d ${h % 24} h`;
  return h ? `${h} h ${m} min` : s % 60 && m < 10 ? `${m} min ${s % 60} s` : `${m} min`;
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
function logTicks(low, high) {
  const found = [], decades = Math.log10(high / low);
  const steps = decades > 4 ? [1] : decades > 1.2 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++)
    for (const m of steps) if (m * 10 ** p >= low * 0.999 && m * 10 ** p <= high * 1.001) found.push(Number((m * 10 ** p).toPrecision(6)));
  return found.length >= 2 ? found : ticks(low, high, 4);
}

/* Exponential average, corrected for its start: the first smoothed value is the first value. */
function smoothed(values, weight) {
  let sum = 0, mass = 0;
  return values.map((value) => { sum = weight * sum + (1 - weight) * value; mass = weight * mass + (1 - weight); return sum / mass; });
}
function nearest(xs, x) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid; else high = mid; }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}
const path = (points) => points.map((p, i) => `${i ? "L" : "M"}${p[0].toFixed(1)} ${p[1].toFixed(1)}`).join("");

/* Charts of one stage: they share the smoothing weight, the scale of losses, and the cursor. */
class Group {
  constructor() { this.charts = []; this.weight = 0; this.log = false; this.step = null; }
  draw() { for (const chart of this.charts) chart.draw(); }
  at(step) { this.step = step; for (const chart of this.charts) chart.cursor(); }
}

class LineChart {
  /* spec: {title, note, unit, log, wide, share, axis?, series: [{label, colour, x, y, band?, dashed?, per}]} */
  constructor(spec, group, size) {
    Object.assign(this, { spec, group, axis: spec.axis || "step", hidden: new Set(), width: 0 });
    this.steps = [...new Set(spec.series.flatMap((s) => s.x))].sort((a, b) => a - b);
    this.height = size === "wide" ? 270 : size === "half" ? 220 : 165;
    this.plot = el("div", { class: "plot", tabindex: 0, role: "img", "aria-label": this.summary() });
    this.live = el("span", { class: "hidden-text", "aria-live": "polite" });
    this.legend = el("div", { class: "legend" });
    this.node = el("figure", { class: `chart ${size}` },
      el("figcaption", {}, el("h4", { text: spec.title }), el("span", { class: "note", text: this.note() })), this.plot, this.legend, this.live);
    this.makeLegend();
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => group.at(null));
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => group.at(null));
    group.charts.push(this);
    // Drawn in the next frame: a drawing inside the observer would change the size that it observes.
    new ResizeObserver(() => { if (Math.abs(this.plot.clientWidth - this.width) > 1) requestAnimationFrame(() => this.draw()); }).observe(this.plot);
  }
  note() {
    const per = Math.max(...this.spec.series.map((s) => s.per));
    return [this.spec.note, per > 1 ? `each point is the mean of ${per} logged steps` : ""].filter(Boolean).join("; ");
  }
  summary() {
    const said = this.spec.series.map((s) => `${s.label} from ${show(s.y[0], this.spec.unit)} at ${this.axis} ${s.x[0]} to ${show(s.y.at(-1), this.spec.unit)} at ${this.axis} ${s.x.at(-1)}`);
    return `${this.spec.title}: ${said.join("; ")}. Use the arrow keys to read single ${this.axis}s.`;
  }
  makeLegend() {
    this.values = this.spec.series.map((s) => {
      const value = el("b"), css = s.dashed ? { "border-color": `var(--${s.colour})` } : { background: `var(--${s.colour})` };
      this.legend.append(el("button", { type: "button", "aria-pressed": "true", title: "show or hide", onclick: (event) => {
        this.hidden.has(s) ? this.hidden.delete(s) : this.hidden.add(s);
        event.currentTarget.setAttribute("aria-pressed", String(!this.hidden.has(s)));
        this.draw();
      } }, el("i", { class: s.dashed ? "dashed" : this.spec.share ? "block" : "", css }), s.label, value));
      return value;
    });
    this.where = el("span", { class: "at" });
    this.legend.append(this.where);
  }
  domain(series, log) {
    if (this.spec.share) return [0, 1];
    let low = Infinity, high = -Infinity;
    for (const s of series) s.y.forEach((y, i) => {
      if (log && y <= 0) return;
      low = Math.min(low, y - (s.band && !log ? s.band[i] : 0)); high = Math.max(high, y + (s.band && !log ? s.band[i] : 0));
    });
    if (!(low <= high)) return [0, 1];
    if (log) return low === high ? [low / 2, high * 2] : [low / 1.08, high * 1.08];
    if (this.spec.unit === "%") { low = Math.min(0, low); high = Math.min(Math.max(high * 1.1, 0.02), Math.max(1, high)); }
    else if (low >= 0 && low < 0.45 * high) low = 0;
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [low === 0 ? 0 : low - room, high + room];
  }
  draw() {
    const width = (this.width = Math.round(this.plot.clientWidth)), height = this.height, unit = this.spec.unit;
    if (width < 60) return;
    const series = this.spec.series.filter((s) => !this.hidden.has(s));
    const log = this.group.log && this.spec.log && series.length > 0 && series.every((s) => s.y.every((y) => y > 0));
    const [low, high] = this.domain(series, log);
    const yTicks = log ? logTicks(low, high) : ticks(low, high, height > 200 ? 5 : 4);
    const label = (y) => (unit === "%" ? `${trim((100 * y).toFixed(1))}\u202f%` : minus(tickLabel(y)));
    const left = Math.max(...yTicks.map((y) => label(y).length)) * 6.4 + 12, right = 10, top = 8, bottom = 24;
    const [first, last] = [this.steps[0], this.steps.at(-1)];
    this.x = (step) => left + ((step - first) / (last - first || 1)) * (width - left - right);
    this.y = log ? (v) => top + (1 - Math.log(v / low) / Math.log(high / low)) * (height - top - bottom)
      : (v) => top + (1 - (v - low) / (high - low)) * (height - top - bottom);
    this.back = (px) => first + ((px - left) / (width - left - right)) * (last - first);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const y of yTicks) picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: this.y(y), y2: this.y(y) }),
      svg("text", { x: left - 8, y: this.y(y) + 4, "text-anchor": "end", text: label(y) }));
    const xs = ticks(first, last, clamp(width / 85, 3, 9)).filter(Number.isInteger);
    for (const x of xs) picture.append(svg("text", { x: this.x(x), y: height - 6, "text-anchor": this.x(x) > width - 24 ? "end" : "middle", text: whole(x) }));
    picture.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    if (this.spec.share) this.stack(picture, series); else for (const s of series) this.line(picture, s, log);
    this.top = svg("g");
    picture.append(this.top);
    this.plot.replaceChildren(picture);
    this.cursor();
  }
  line(picture, s, log) {
    const colour = `var(--${s.colour})`, weight = s.x.length >= 20 && !s.exact ? this.group.weight : 0;
    const at = (ys) => ys.map((y, i) => [this.x(s.x[i]), this.y(y)]);
    if (s.band && !log) {
      const mean = weight ? smoothed(s.y, weight) : s.y, band = weight ? smoothed(s.band, weight) : s.band;
      const edge = at(mean.map((y, i) => y + band[i])).concat(at(mean.map((y, i) => y - band[i])).reverse());
      picture.append(svg("path", { d: `${path(edge)}Z`, css: { fill: colour, opacity: 0.13 } }));
    }
    const css = { stroke: colour, fill: "none", "stroke-width": 1.8, "stroke-linejoin": "round", "stroke-dasharray": s.dashed ? "4 4" : "none" };
    if (weight) picture.append(svg("path", { d: path(at(s.y)), css: { ...css, "stroke-width": 1, opacity: 0.28 } }));
    picture.append(svg("path", { d: path(at(weight ? smoothed(s.y, weight) : s.y)), css }));
    if (s.x.length < 20) for (const [x, y] of at(s.y)) picture.append(svg("circle", { cx: x, cy: y, r: 2.6, css: { fill: colour } }));
  }
  stack(picture, series) {
    let under = null;
    for (const s of series.filter((one) => !one.dashed)) {
      const floor = under || s.y.map(() => 0), roof = s.y.map((y, i) => floor[i] + y);
      const edge = roof.map((y, i) => [this.x(s.x[i]), this.y(y)]).concat(floor.map((y, i) => [this.x(s.x[i]), this.y(y)]).reverse());
      picture.append(svg("path", { d: `${path(edge)}Z`, css: { fill: `var(--${s.colour})`, opacity: 0.82 } }));
      under = roof;
    }
    for (const s of series.filter((one) => one.dashed)) this.line(picture, s, false);
  }
  cursor() {
    if (!this.top) return;
    const at = this.group.step, shown = at === null ? null : clamp(at, this.steps[0], this.steps.at(-1));
    this.top.replaceChildren();
    if (shown !== null) {
      const step = this.steps[nearest(this.steps, shown)];
      this.top.append(svg("line", { class: "cursor", x1: this.x(step), x2: this.x(step), y1: 8, y2: this.height - 24 }));
    }
    const read = [];
    this.spec.series.forEach((s, i) => {
      const k = shown === null ? s.y.length - 1 : nearest(s.x, shown);
      this.values[i].textContent = minus(show(s.y[k], this.spec.unit)) + (s.band ? ` ± ${show(s.band[k])}` : "");
      read.push(`${s.label} ${this.values[i].textContent}`);
      if (shown !== null && !this.hidden.has(s) && !this.spec.share) this.top.append(svg("circle", { cx: this.x(s.x[k]), cy: this.y(s.y[k]), r: 3.4, css: { fill: `var(--${s.colour})`, stroke: "var(--card)", "stroke-width": 1.5 } }));
    });
    const step = shown === null ? this.steps.at(-1) : this.steps[nearest(this.steps, shown)];
    this.where.textContent = `${shown === null ? "last, " : ""}${this.axis} ${whole(step)}`;
    if (document.activeElement === this.plot && shown !== null) this.live.textContent = `${this.axis} ${step}: ${read.join(", ")}`;
  }
  point(event) {
    const box = this.plot.getBoundingClientRect();
    if (this.back) this.group.at(this.back(((event.clientX - box.left) / box.width) * this.width));
  }
  key(event) {
    const now = this.group.step === null ? this.steps.length - 1 : nearest(this.steps, this.group.step), far = Math.max(1, Math.round(this.steps.length / 10));
    const next = { ArrowLeft: now - 1, ArrowRight: now + 1, PageDown: now - far, PageUp: now + far, Home: 0, End: this.steps.length - 1 }[event.key];
    if (event.key === "Escape") this.group.at(null);
    if (next === undefined) return;
    event.preventDefault();
    this.group.at(this.steps[clamp(next, 0, this.steps.length - 1)]);
  }
}

/* Shares with their 95 % intervals on one axis from 0 to 100 %. rows: {name, value, low, high, range?, colour} */
function intervals(rows) {
  const holder = el("div", { class: "dots", role: "img",
    "aria-label": rows.map((r) => `${r.name}: ${show(r.value, "%")}, 95 % interval ${show(r.low, "%")} to ${show(r.high, "%")}`).join("; ") });
  const longest = Math.min(22, Math.max(...rows.map((row) => row.name.length)));
  let drawn = 0;
  const draw = () => {
    const width = Math.round(holder.clientWidth), left = Math.min(longest * 7 + 20, 0.4 * width), right = 18, height = rows.length * 27 + 24;
    if (width < 60) return;
    drawn = width;
    const x = (v) => left + v * (width - left - right), fits = Math.max(4, Math.floor((left - 14) / 6.8));
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const v of [0, 0.25, 0.5, 0.75, 1]) picture.append(svg("line", { class: "grid", x1: x(v), x2: x(v), y1: 2, y2: height - 20 }),
      svg("text", { x: x(v), y: height - 5, "text-anchor": "middle", text: v === 1 ? "100 %" : `${100 * v}` }));
    rows.forEach((row, i) => {
      const y = i * 27 + 15, css = { stroke: `var(--${row.colour})`, "stroke-linecap": "round", opacity: 0.55 };
      picture.append(svg("text", { class: "name", x: 0, y: y + 4, text: row.name.length > fits ? `${row.name.slice(0, fits - 1)}…` : row.name }));
      if (row.range && row.range[1] > row.range[0]) picture.append(svg("rect", { x: x(row.range[0]), y: y - 7, width: x(row.range[1]) - x(row.range[0]), height: 14, rx: 2, css: { fill: "var(--failed)", opacity: 0.4 } }, svg("title", { text: "up to here if every failed judgement were right" })));
      picture.append(svg("line", { x1: x(row.low), x2: x(row.high), y1: y, y2: y, css: { ...css, "stroke-width": 2 } }));
      for (const end of [row.low, row.high]) picture.append(svg("line", { x1: x(end), x2: x(end), y1: y - 4, y2: y + 4, css: { ...css, "stroke-width": 1.5 } }));
      picture.append(svg("circle", { cx: x(row.value), cy: y, r: 5, css: { fill: `var(--${row.colour})`, stroke: "var(--card)", "stroke-width": 1.5 } }));
    });
    holder.replaceChildren(picture);
  };
  new ResizeObserver(() => { if (Math.abs(holder.clientWidth - drawn) > 1) requestAnimationFrame(draw); }).observe(holder);
  return holder;
}
