/* Draws the page from the data in the file. */

const data = JSON.parse(document.getElementById("data").textContent);
const percent = (value) => show(value, "%");
const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : "±"}${Math.abs(100 * value).toFixed(1)}`;
const pair = ([name, value]) => [el("dt", { text: name }), el("dd", { text: value })];

function section(id, title, lead, ...content) {
  return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title`, text: title }), lead ? el("p", { class: "lead", text: lead }) : null, ...content);
}

function head() {
  const mark = svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: "M1.5 7c3 0 3-2 5.2-2S9 7 12 7s3-2 5.2-2 2.3 2 5.3 2", css: { fill: "none", stroke: "var(--accent)", "stroke-width": 1.6, "stroke-linecap": "round" } }),
    svg("path", { d: "M12 7v10", css: { stroke: "var(--accent)", "stroke-width": 1.3, "stroke-dasharray": "1.6 2.2" } }), svg("circle", { cx: 12, cy: 20, r: 2.3, css: { fill: "var(--warm)" } }));
  const facts = data.facts.concat(data.timeline && data.timeline.busy > 0 ? [["working time", duration(data.timeline.busy)]] : []);
  return el("header", { class: "top wrap" }, el("p", { class: "kicker" }, mark, data.single ? "Fathom · stage" : "Fathom · run"), el("h1", { text: data.name }),
    el("ol", { class: "chain" }, data.chain.map((stage) => el("li", { class: stage.status }, el("b", { text: stage.name }), el("span", { text: [stage.system === stage.name ? "" : stage.system, stage.status === "done" ? "" : stage.status].filter(Boolean).join(", ") })))),
    facts.length ? el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, pair([name, value])))) : null,
    data.warnings.length ? el("ul", { class: "warnings" }, data.warnings.map((text) => el("li", { text }))) : null);
}

function scoreCard(entry, headline) {
  const { before, after, difference } = entry;
  const value = (100 * after.accuracy).toFixed(1);
  const big = el("p", { class: "big" }, before ? [el("span", { class: "from", text: (100 * before.accuracy).toFixed(1) }), el("span", { class: "arrow", text: "→" })] : null, el("span", { text: value }), el("span", { class: "unit", text: "% right" }));
  let verdict = null;
  if (difference) {
    const kind = !difference.significant ? "none" : difference.mean > 0 ? "up" : "down";
    verdict = el("p", { class: "verdict" }, el("b", { class: kind, text: `${signed(difference.mean)} points` }), `, 95 % interval ${signed(difference.low)} to ${signed(difference.high)}: `,
      el("b", { text: difference.significant ? "significant" : "not significant" }));
  }
  const asked = [`${whole(after.problems)} problems`, after.k > 1 ? `${after.k} samples each` : "", difference ? `paired over ${whole(difference.problems)} shared problems` : "", difference && difference.left_out ? `${difference.left_out} not comparable, left out` : ""];
  const range = after.failed ? el("p", { class: "quiet small", text: `${whole(after.failed)} of ${whole(after.samples)} samples not judged: the score lies between ${percent(after.range[0])} and ${percent(after.range[1])}` }) : null;
  const rows = [];
  if (before) rows.push({ name: headline.before.model || headline.before.stage, ...interval(before), colour: "faint" });
  rows.push({ name: headline.after.model || headline.after.stage, ...interval(after), colour: "accent" });
  return el("article", { class: "card" }, el("h3", { text: entry.task }), big, verdict, el("p", { class: "quiet small", text: asked.filter(Boolean).join(" · ") }), range, intervals(rows));
}
const interval = (task) => ({ value: task.accuracy, low: task.low, high: task.high, range: task.failed ? task.range : null });

function headline() {
  const found = data.headline;
  if (!found) return null;
  if (found.kind === "training") {
    return section("result", "Result", "This run was not evaluated: what follows was measured during training.", el("div", { class: "scores" }, found.items.map((item) =>
      el("article", { class: "card" }, el("h3", {}, item.stage, el("span", { text: item.key })), el("p", { class: "big" }, el("span", { class: "from", text: minus(show(item.first)) }), el("span", { class: "arrow", text: "→" }), el("span", { text: minus(show(item.last)) })),
        el("p", { class: "quiet small", text: `first to last value, step ${whole(item.step)}` })))));
  }
  const name = (side) => side.model || side.path || side.stage;
  const lead = found.kind === "change" ? `${name(found.after)} (evaluated in ${found.after.stage}) against ${name(found.before)} (evaluated in ${found.before.stage}).` : `${name(found.after)}, evaluated in ${found.after.stage}.`;
  return section("result", "Result", `${lead} Intervals are 95 %.`, el("div", { class: "scores" }, found.tasks.map((entry) => scoreCard(entry, found))));
}

function timelineSection() {
  const line = data.timeline;
  if (!line) return null;
  const at = (fraction) => `${(100 * fraction).toFixed(3)}%`, seen = new Set();
  const rows = line.stages.map((stage) => {
    const track = el("div", { class: "track", "aria-hidden": "true" }, line.breaks.map((b) => el("i", { class: "pause", css: { left: at(b.at) }, title: `paused for ${duration(b.seconds)}` })),
      stage.attempts.map((a) => { seen.add(a.status); return el("i", { class: `attempt ${a.status}`, css: { left: at(a.from), width: at(a.to - a.from) }, title: `attempt ${a.number}: ${a.status}${a.seconds === null ? "" : ` after ${duration(a.seconds)}`}${a.certain ? "" : " (last sign of life)"}${a.message ? `: ${a.message}` : ""}` }); }));
    const broken = stage.attempts.filter((a) => a.status !== "done" && a.status !== "running");
    const told = [stage.attempts.length > 1 ? `${stage.attempts.length} attempts` : "", ...broken.map((a) => `${a.status}${a.seconds === null ? "" : ` at ${duration(a.seconds)}`}`), stage.attempts.length > 1 || !stage.steps ? "" : `${whole(stage.steps)} steps`].filter(Boolean);
    return el("div", { class: "stage-row" }, el("div", { class: "what" }, el("b", { text: stage.name }), el("span", { text: stage.system })), track,
      el("div", { class: "took" }, el("b", { text: stage.attempts.length ? duration(stage.seconds) : stage.status === "waiting" ? "not started" : stage.status }), el("span", { text: told.join(", ") })));
  });
  const words = { done: "finished", running: "running", stopped: "stopped, resumable", killed: "killed, then resumed", failed: "failed" };
  const keys = Object.keys(words).filter((status) => seen.has(status)).map((status) => el("span", {}, el("i", { class: `attempt ${status}` }), words[status]));
  if (line.breaks.length) keys.push(el("span", {}, el("i", { class: "pause" }), `pause, not to scale (${line.breaks.map((b) => duration(b.seconds)).join(", ")})`));
  return section("stages", "Stages", "Working time from left to right.", el("div", { class: "card" }, el("div", { class: "stages" }, rows), keys.length > 1 ? el("div", { class: "keys" }, keys) : null));
}

function sizes(charts) {
  const small = charts.filter((chart) => !chart.wide).length, wides = charts.filter((chart) => chart.wide);
  return charts.map((chart) => (chart.wide ? (wides.length === 2 && !chart.share && small > 0 && wides.some((w) => w.share) ? "half" : wides.length === 2 && chart.share ? "half" : "wide") : small === 1 ? "half" : small === 2 || small === 4 ? "half" : "small"));
}

function curvesSection() {
  if (!data.curves.length) return null;
  const cards = data.curves.map((stage) => {
    const group = new Group(), longest = Math.max(0, ...stage.charts.map((c) => Math.max(...c.series.map((s) => s.x.length))));
    group.weight = longest >= 40 ? 0.6 : 0;
    const controls = [];
    if (longest >= 20) {
      const said = el("output", { text: group.weight.toFixed(2) });
      const slider = el("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: group.weight, oninput: () => { group.weight = Number(slider.value); said.textContent = group.weight.toFixed(2); group.draw(); } });
      controls.push(el("label", {}, "smoothing", slider, said));
    }
    if (stage.charts.some((chart) => chart.log)) controls.push(el("label", {}, el("input", { type: "checkbox", onchange: (event) => { group.log = event.target.checked; group.draw(); } }), "logarithmic losses and norms"));
    const size = sizes(stage.charts);
    return el("div", { class: "card" }, el("div", { class: "stage-head" }, el("h3", {}, stage.stage, el("span", { text: stage.system === stage.stage ? "" : stage.system })), el("div", { class: "controls" }, controls)),
      el("div", { class: "charts" }, stage.charts.map((chart, i) => new LineChart(chart, group, size[i]).node)),
      stage.singles.length ? el("div", { class: "singles" }, stage.singles.map((one) => el("span", {}, `${one.label} `, el("b", { text: minus(show(one.value, one.unit)) }), one.step === undefined ? " at every step" : ` at step ${whole(one.step)}`))) : null,
      stage.lengths ? scoreTable(stage.lengths) : null);
  });
  return section("training", "Training", "Faint lines are the logged values, strong lines their running average. Point at a chart to read all charts of the stage at that step.", cards);
}

/* Colours of the load: the neutral colour is an even spread; doubling and halving are equally far from it. */
function loadColours() {
  const style = getComputedStyle(document.documentElement), rgb = (name) => {
    const hex = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  };
  const [even, over, under] = ["--even", "--over", "--under"].map(rgb);
  return (ratio) => {
    const far = clamp(Math.log2(Math.max(ratio, 1e-6)) / 2, -1, 1), end = far > 0 ? over : under, t = Math.abs(far) ** 0.8;
    return even.map((c, i) => Math.round(c + (end[i] - c) * t));
  };
}
function paint(canvas, columns, rows, value) {
  canvas.width = columns; canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows), colour = loadColours();
  for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
    const v = value(x, y), at = 4 * (y * columns + x);
    if (v === undefined) continue;
    image.data.set([...colour(v), 255], at);
  }
  context.putImageData(image, 0, 0);
}

function loadCard(load) {
  const canvas = el("canvas", { role: "img", "aria-label": `load of ${load.experts} experts in ${load.layers} layers` }), scale = el("canvas");
  const read = el("output"), when = el("output"), frames = load.frames.length;
  let frame = frames - 1, timer = null;
  canvas.style.height = `${clamp(load.layers * 30, 60, 420)}px`;
  const slider = el("input", { type: "range", min: 0, max: frames - 1, value: frame, "aria-label": "step", oninput: () => { frame = Number(slider.value); draw(); } });
  const play = el("button", { type: "button", class: "chip play", text: "play", onclick: () => {
    if (timer) { clearInterval(timer); timer = null; play.textContent = "play"; return; }
    if (frame === frames - 1) frame = -1;
    play.textContent = "pause";
    timer = setInterval(() => { frame++; slider.value = frame; draw(); if (frame >= frames - 1) { clearInterval(timer); timer = null; play.textContent = "play"; } }, 160);
  } });
  function resting() {
    let most = [0, 0, 0], idle = 0;
    load.frames[frame].forEach((layer, l) => layer.forEach((v, e) => { if (v > most[0]) most = [v, l, e]; if (v < 0.1) idle++; }));
    read.textContent = `busiest: layer ${most[1] + 1}, expert ${most[2] + 1} with ${most[0].toFixed(2)} × an even share` + (idle ? `; ${idle} below 0.1 ×` : "");
  }
  function draw() {
    paint(canvas, load.experts, load.layers, (x, y) => load.frames[frame][y][x]);
    when.textContent = `step ${whole(load.steps[frame])}`;
    resting();
  }
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), e = clamp(Math.floor(((event.clientX - box.left) / box.width) * load.experts), 0, load.experts - 1), l = clamp(Math.floor(((event.clientY - box.top) / box.height) * load.layers), 0, load.layers - 1);
    const v = load.frames[frame][l][e];
    if (v !== undefined) read.textContent = `layer ${l + 1}, expert ${e + 1}: ${v.toFixed(2)} × an even share (${((100 * v) / load.frames[frame][l].length).toFixed(1)} % of tokens)`;
  });
  canvas.addEventListener("pointerleave", resting);
  const many = frames > 2 && load.layers <= 12 ? Array.from({ length: load.layers }, (_, l) => el("canvas", { role: "img", "aria-label": `layer ${l + 1}: load of each expert over the steps` })) : [];
  const repaint = () => {
    draw();
    paint(scale, 60, 1, (x) => 2 ** ((x / 59) * 4 - 2));
    many.forEach((small, l) => paint(small, frames, load.experts, (x, y) => load.frames[x][l][y]));
  };
  repaint();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  const labels = load.layers <= 14 ? Array.from({ length: load.layers }, (_, l) => el("span", { text: `layer ${l + 1}` })) : [el("span", { text: "layer 1" }), el("span", { text: `layer ${load.layers}` })];
  const group = new Group(), lines = load.layers <= 5 ? load.layers : 0, colours = ["accent", "warm", "teal", "violet", "wrong"];
  const busiest = (l) => load.frames.map((f) => Math.max(...f[l]));
  const over = Array.from({ length: load.layers }, (_, l) => busiest(l));
  const series = lines ? over.map((y, l) => ({ label: `layer ${l + 1}`, colour: colours[l], x: load.steps, y, per: 1 }))
    : [{ label: "worst layer", colour: "warm", x: load.steps, y: load.steps.map((_, i) => Math.max(...over.map((o) => o[i]))), per: 1 }, { label: "mean of layers", colour: "accent", x: load.steps, y: load.steps.map((_, i) => over.reduce((a, o) => a + o[i], 0) / over.length), per: 1 }];
  return el("div", { class: "card" }, el("div", { class: "stage-head" }, el("h3", {}, load.stage, el("span", { text: `${load.layers} layers × ${load.experts} experts` })),
    el("div", { class: "scale", role: "img", "aria-label": "colours from a quarter of an even share, over even, to four times" }, "¼ ×", scale, "4 ×", el("span", { class: "quiet", text: "of an even share" }))),
  el("div", { class: "heat-body" }, el("div", { class: "ylabels", css: load.layers > 14 ? { "justify-content": "space-between" } : {} }, labels), el("div", { class: "heat" }, canvas), el("div", { class: "xlabels" }, el("span", { text: "expert 1" }), el("span", { text: `expert ${load.experts}` }))),
  el("div", { class: "heat-foot" }, read, frames > 1 ? el("div", { class: "controls" }, play, el("label", {}, slider, when)) : el("span", { class: "quiet small" }, when)),
  many.length ? [el("h4", { class: "sub", text: "Over time" }), el("p", { class: "quiet small", text: `steps from left (${whole(load.steps[0])}) to right (${whole(load.steps.at(-1))}), one line per expert` }), el("div", { class: "multiples" }, many.map((small, l) => el("figure", {}, el("figcaption", { text: `layer ${l + 1}` }), small)))] : null,
  frames > 1 ? el("div", { class: "charts" }, new LineChart({ title: "Busiest expert", note: "times an even share; 1 is perfectly balanced", unit: "", series }, group, "wide").node) : null);
}

/* Needles found by depth (rows) and length (columns): the fuller the colour, the more of them. */
function needleCard(grid) {
  const part = (share) => `${Math.round(100 * share)}\u202f%`;
  const best = Math.max(...grid.found.flat()), worst = Math.min(...grid.found.flat()), all = grid.found.flat();
  const cell = (share, depth, length) => el("td", { css: { background: `color-mix(in srgb, var(--right) ${Math.round(78 * share)}%, var(--even))` }, title: `${whole(length)} tokens, depth ${part(depth)}: ${part(share)} of ${grid.samples}` }, part(share));
  return el("figure", {}, el("figcaption", {}, el("b", { text: grid.name }), ` ${part(all.reduce((a, v) => a + v, 0) / all.length)} found`, best > worst ? `, ${part(worst)} in the worst cell` : ""),
    el("div", { class: "scroll" }, el("table", { class: "needles" }, el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "depth" }), grid.lengths.map((length) => el("th", { scope: "col", text: whole(length) })))),
      el("tbody", {}, grid.depths.map((depth, d) => el("tr", {}, el("th", { scope: "row", text: part(depth) }), grid.lengths.map((length, n) => cell(grid.found[d][n], depth, length))))))));
}

function proofSection() {
  if (!data.proofs.length) return null;
  return section("proof", "Long texts", "How well the model predicts the deeper it is in a text, and whether it finds a code that was said once. A curve that turns upwards past the old length is a broken stretching.", data.proofs.map((proof) =>
    el("div", { class: "card" }, el("div", { class: "stage-head" }, el("h3", {}, proof.stage, el("span", { text: `${whole(proof.original)} → ${whole(proof.target)} tokens` }))),
      el("div", { class: "charts" }, new LineChart(proof.chart, new Group(), "wide").node),
      el("h4", { class: "sub", text: "Needles found" }), el("p", { class: "quiet small", text: "by depth in the text (rows) and its length in tokens (columns), greedy answers" }),
      el("div", { class: "grids" }, proof.grids.map(needleCard)))));
}

const shareOf = (cell) => (cell && typeof cell === "object" ? (cell.of ? cell.right / cell.of : null) : undefined);
function tableCell(cell, heat) {
  const share = shareOf(cell);
  if (share === undefined) return typeof cell === "number" ? el("td", { class: "n", text: Number.isInteger(cell) ? whole(cell) : cell.toFixed(2) }) : el("td", { class: cell === null ? "n" : null, text: cell === null ? "–" : cell });
  if (share === null) return el("td", { class: "n", text: "–" });
  const said = `${whole(cell.right)} of ${whole(cell.of)}` + (cell.low === undefined ? "" : `, 95 % interval ${percent(cell.low)} to ${percent(cell.high)}`);
  if (heat) return el("td", { class: "n", title: said, css: { background: `color-mix(in srgb, var(--accent) ${Math.round(8 + 62 * share)}%, transparent)` } }, percent(share), el("small", { text: `of ${whole(cell.of)}` }));
  return el("td", { class: "n" }, el("b", { text: percent(share) }), el("small", { text: `${whole(cell.right)} of ${whole(cell.of)} · ${percent(cell.low)} to ${percent(cell.high)}` }));
}
function scoreTable(table) {
  const heat = table.kind === "heat";
  return el("details", { class: "fold", open: heat || table.rows.length <= 12 }, el("summary", {}, el("b", { text: table.title }), el("span", { text: table.note })),
    el("div", { class: "scroll" }, el("table", { class: heat ? "shares" : null }, el("thead", {}, el("tr", {}, table.columns.map((h, i) => el("th", { class: i ? "n" : null, scope: "col", text: h })))),
      el("tbody", {}, table.rows.map((row) => el("tr", {}, row.map((cell, i) => (i ? tableCell(cell, heat) : el("th", { scope: "row", class: "row", text: String(cell) })))))))));
}
const below = (stage, task, several) => [
  task.notes && task.notes.length ? el("ul", { class: "quiet small" }, task.notes.map((text) => el("li", { text: several ? `${stage}: ${text}` : text }))) : null,
  task.chart ? new LineChart(task.chart, new Group(), "wide").node : null,
  task.tables && task.tables.length ? el("div", { class: "tables" }, several ? el("h4", { class: "sub", text: stage }) : null, task.tables.map(scoreTable)) : null];

function evaluationSection() {
  if (!data.evaluations.length) return null;
  const tasks = [...new Set(data.evaluations.flatMap((e) => e.tasks.map((t) => t.task)))];
  const several = data.evaluations.length > 1;
  const cards = tasks.map((name) => {
    const rows = data.evaluations.flatMap((e) => e.tasks.filter((t) => t.task === name).map((task) => ({ stage: e.stage, model: e.model, task })));
    const ks = [...new Set(rows.flatMap(({ task }) => [...Object.keys(task.pass_at || {}).map((k) => `pass@${k}`), ...Object.keys(task.maj_at || {}).map((k) => `maj@${k}`)]))];
    const look = (task, k) => { const [kind, n] = k.split("@"), v = (kind === "pass" ? task.pass_at : task.maj_at)?.[n]; return v === undefined || v === null ? "–" : percent(v); };
    const outcomes = (task) => Object.keys(OUTCOMES).filter((o) => task[o]);
    return el("div", { class: "card" }, el("h3", { text: name }), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ["evaluation", "right of all asked", "95 % interval", ...ks, "mean tokens", "outcomes of samples"].map((h, i) => el("th", { class: i > 0 && i < ks.length + 4 ? "n" : null, scope: "col", text: h })))),
      el("tbody", {}, rows.map(({ stage, model, task }) => el("tr", {}, el("td", {}, el("b", { text: stage }), el("small", { text: model })), el("td", { class: "n" }, el("b", { text: percent(task.accuracy) }), el("small", { text: `${whole(task.right)} of ${whole(task.samples)}` })),
        el("td", { class: "n" }, `${percent(task.low)} to ${percent(task.high)}`, task.failed ? el("small", { text: `range ${percent(task.range[0])} to ${percent(task.range[1])}` }) : null), ks.map((k) => el("td", { class: "n", text: look(task, k) })), el("td", { class: "n", text: task.mean_tokens === null || task.mean_tokens === undefined ? "–" : show(Math.round(task.mean_tokens)) }),
        el("td", {}, el("div", { class: "bar", role: "img", "aria-label": outcomes(task).map((o) => `${task[o]} ${o}`).join(", ") }, outcomes(task).map((o) => el("i", { class: outcomeClass(o), css: { flex: task[o] }, title: `${task[o]} ${o}` }))), el("small", { text: outcomes(task).map((o) => `${whole(task[o])} ${o}`).join(" · ") }))))))),
    several && rows.length > 1 ? intervals(rows.map((row, i) => ({ name: row.stage, ...interval(row.task), colour: i === rows.length - 1 ? "accent" : "faint" }))) : null, rows.flatMap(({ stage, task }) => below(stage, task, rows.length > 1)));
  });
  return section("evaluation", "Evaluation", "The score is right out of all asked. Unread: no answer in the text. Failed: the judge broke, and the range says what the score could be.", cards);
}

function ledgerSection() {
  if (!data.ledgers.length) return null;
  return section("data", "Data", "Every record that went in came out or was rejected by name.", data.ledgers.map((ledger) => {
    const rejects = ledger.rejected.reduce((sum, [, n]) => sum + n, 0), most = Math.max(ledger.done, ...ledger.rejected.map(([, n]) => n));
    const row = (name, n, kind) => [el("span", { text: name }), el("div", { class: "bar", "aria-hidden": "true" }, el("i", { class: kind, css: { width: `${(100 * n) / most}%` } })), el("span", { class: "n" }, whole(n), el("small", { text: ` ${percent(n / ledger.inputs)}` }))];
    return el("div", { class: "card" }, el("h3", {}, ledger.stage, el("span", { text: `${whole(ledger.inputs)} in = ${whole(ledger.done)} done + ${whole(rejects)} rejected; ${whole(ledger.outputs)} records out` })),
      el("div", { class: "ledger" }, row("done", ledger.done, "kept-bar"), ledger.rejected.slice(0, 30).map(([reason, n]) => row(reason, n, "reject-bar"))), ledger.rejected.length > 30 ? el("p", { class: "quiet small", text: `and ${ledger.rejected.length - 30} rarer reasons` }) : null);
  }));
}

function settingsSection() {
  if (!data.settings.length && !data.recipe) return null;
  const block = (title, rows) => (rows.length ? el("div", {}, el("h4", { text: title }), el("dl", {}, rows.map(pair))) : null);
  const folds = data.settings.map((stage) => el("details", { class: "fold", open: data.settings.length === 1 }, el("summary", {}, el("b", { text: stage.stage }), el("span", { text: stage.system })),
    el("div", { class: "pairs" }, block("settings", stage.rows), el("div", {}, block("summary", stage.summary), block("environment", stage.environment)))));
  if (data.recipe) folds.unshift(el("details", { class: "fold" }, el("summary", {}, el("b", { text: "recipe.yaml" }), el("span", { text: "as written" })), el("pre", { text: data.recipe })));
  return section("settings", "Settings", "", el("div", { class: "card" }, folds));
}

const parts = [headline(), timelineSection(), proofSection(), curvesSection(),
  data.load.length ? section("experts", "Expert load", "How evenly the router spreads tokens. The neutral colour is an even share; warm experts get more, cool ones less.", data.load.map(loadCard)) : null,
  evaluationSection(), data.completions.length ? section("completions", "Completions", "", completionsBrowser(data.completions)) : null, ledgerSection(), settingsSection()].filter(Boolean);
const links = parts.map((part) => el("a", { href: `#${part.id}`, text: part.querySelector("h2").textContent }));
document.getElementById("page").append(head(), parts.length > 1 ? el("nav", { "aria-label": "sections" }, el("ul", { class: "wrap" }, links.map((link) => el("li", {}, link)))) : "",
  el("main", { id: "content", class: "wrap" }, parts), el("footer", { class: "wrap", text: "Written by fathom report. This file holds everything that it shows and asks the network for nothing." }));
const current = () => {
  const passed = parts.filter((part) => part.getBoundingClientRect().top < innerHeight * 0.35);
  links.forEach((link, i) => (parts[i] === (passed.at(-1) || parts[0]) ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
};
addEventListener("scroll", current, { passive: true });
current();
