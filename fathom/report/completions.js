/* The browser of completions: filters by stage, outcome, step and text; thinking is folded. */

const OUTCOMES = { right: "✓", wrong: "✕", unread: "?", failed: "!" };
const outcomeClass = (outcome) => (outcome in OUTCOMES ? `o-${outcome}` : "");

/* `text` with every occurrence of `query` marked, as nodes. */
function marked(text, query) {
  if (!query) return [text];
  const found = [], lower = text.toLowerCase();
  let from = 0;
  for (let at = lower.indexOf(query); at >= 0 && found.length < 400; at = lower.indexOf(query, from)) {
    found.push(text.slice(from, at), el("mark", { text: text.slice(at, at + query.length) }));
    from = at + query.length;
  }
  return [...found, text.slice(from)];
}

/* A text that lost its middle is drawn as two parts with a line between that says how much is not here. */
function cutText(part, query) {
  if (!part.cut) return marked(part.text, query);
  return [...marked(part.text.slice(0, part.at), query), el("span", { class: "cut", text: `… ${whole(part.cut)} characters left out of this page …` }),
    ...marked(part.text.slice(part.at), query)];
}

function sampleBody(sample, query) {
  const why = [["reason", sample.reason], ["read as", sample.extracted], ["reward", sample.reward === undefined ? "" : minus(show(sample.reward))],
    ...Object.entries(sample.rewards || {}).map(([name, value]) => [name, value === null ? "failed" : minus(show(value))]),
    ["advantage", sample.advantage === undefined ? "" : minus(show(sample.advantage))],
    ["length", sample.tokens ? `${whole(sample.tokens)} tokens` : ""],
    ["ended", sample.finish === "length" ? "cut off at the token limit" : ""]];
  const body = el("div", { class: "body" }, el("div", { class: "why" },
    why.filter(([, value]) => value).map(([name, value]) => el("span", {}, `${name} `, el("b", { text: value })))));
  const open = sample.text.indexOf("<think>"), close = sample.text.lastIndexOf("</think>");
  if (open < 0 && close < 0) return fill(body, {}, [el("div", { class: "text" }, cutText(sample, query))]);
  const from = open >= 0 && (close < 0 || open < close) ? open + 7 : 0, to = close >= 0 ? close : sample.text.length;
  const thought = { text: sample.text.slice(from, to).trim() };
  if (sample.cut && sample.at > from && sample.at < to) Object.assign(thought, { cut: sample.cut, at: clamp(sample.at - from, 0, thought.text.length) });
  const label = close < 0 ? "thinking, never ended" : `thinking, ${whole(thought.text.length + (thought.cut || 0))} characters`;
  const rest = (from ? sample.text.slice(0, from - 7) : "") + (close >= 0 ? sample.text.slice(close + 8) : "");
  return fill(body, {}, [
    el("details", { class: "thinking", open: Boolean(query) && thought.text.toLowerCase().includes(query) }, el("summary", { text: label }), el("div", { class: "text" }, cutText(thought, query))),
    el("div", { class: "text" }, marked(rest.trim() || "(nothing after thinking)", query))]);
}

function sampleRow(sample, query, open) {
  const answer = sample.extracted !== undefined ? [`answered `, el("code", { text: sample.extracted })] : [sample.reason];
  const numbers = [sample.reward !== undefined ? `reward ${minus(show(sample.reward))}` : "", sample.tokens ? `${whole(sample.tokens)} tokens` : "", sample.finish === "length" ? "cut off" : ""];
  const row = el("details", { class: `sample ${outcomeClass(sample.outcome)}` }, el("summary", {},
    el("span", { class: "word", text: `${OUTCOMES[sample.outcome] || "·"} ${sample.outcome}` }), el("span", { class: "gist" }, answer),
    el("span", { class: "numbers", text: numbers.filter(Boolean).join(" · ") })));
  const build = () => { if (row.children.length === 1) row.append(sampleBody(sample, query)); };
  row.addEventListener("toggle", build);
  if (open) { build(); row.open = true; }
  return row;
}

function problemCard(problem, samples, query, open) {
  const meta = [problem.step !== undefined ? `step ${problem.step}` : "", problem.task || "", problem.problem].filter(Boolean);
  const rights = problem.group.filter((s) => s.outcome === "right").length;
  return el("article", { class: "problem" }, el("header", {},
    el("div", { class: "meta" }, meta.map((text) => el("span", { text })), el("span", { class: "squares", role: "img", "aria-label": `${rights} of ${problem.group.length} right` },
      problem.group.map((s) => el("i", { class: outcomeClass(s.outcome), title: s.outcome })))),
    el("p", { class: "prompt" }, cutText(problem.prompt, query)),
    el("p", { class: "reference" }, "reference answer ", el("code", { text: problem.answer || "none" }), ` · ${rights} of ${problem.group.length} right`)),
  samples.map((s, i) => sampleRow(s, query, open && i === 0)));
}

function completionsBrowser(sources) {
  const state = { source: sources.findLast((source) => source.kind === "samples") || sources.at(-1), outcomes: new Set(), step: "", query: "", limit: 6 };
  const list = el("div"), note = el("p", { class: "quiet small", "aria-live": "polite" }), chips = el("div", { class: "chips", role: "group", "aria-label": "filter by outcome" });
  const steps = el("select", { "aria-label": "step", onchange: () => { state.step = steps.value; state.limit = 6; draw(); } });
  const more = el("button", { type: "button", class: "chip more", onclick: () => { state.limit += 12; draw(); } });
  let waiting = 0;
  const search = el("input", { type: "search", placeholder: "search in problems and completions", "aria-label": "search", oninput: () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.query = search.value.trim().toLowerCase(); state.limit = 6; draw(); }, 120);
  } });
  const tabs = el("div", { class: "tabs", role: "group", "aria-label": "stage" }, sources.length > 1 ? sources.map((source) =>
    el("button", { type: "button", class: "chip", onclick: () => { Object.assign(state, { source, step: "", limit: 6 }); state.outcomes.clear(); setup(); } },
      source.stage, el("small", { text: source.kind === "samples" ? "training" : "evaluation" }))) : []);

  function setup() {
    [...tabs.children].forEach((tab, i) => tab.setAttribute("aria-pressed", String(sources[i] === state.source)));
    const found = [...new Set(state.source.problems.map((p) => p.step).filter((s) => s !== undefined))].sort((a, b) => a - b);
    steps.hidden = found.length < 2;
    steps.replaceChildren(el("option", { value: "", text: "all steps" }), ...found.map((step) => el("option", { value: step, text: `step ${step}` })));
    draw();
  }
  const inText = (problem, sample) => !state.query || [problem.prompt.text, problem.answer, problem.problem, sample.text, sample.reason, String(sample.extracted ?? "")].some((t) => t.toLowerCase().includes(state.query));
  function draw() {
    const counts = {}, shown = [];
    for (const problem of state.source.problems) {
      if (state.step !== "" && String(problem.step) !== state.step) continue;
      const readable = problem.group.filter((sample) => inText(problem, sample));
      for (const sample of readable) counts[sample.outcome] = (counts[sample.outcome] || 0) + 1;
      const samples = readable.filter((sample) => !state.outcomes.size || state.outcomes.has(sample.outcome));
      if (samples.length) shown.push([problem, samples]);
    }
    chips.replaceChildren(...Object.keys(OUTCOMES).filter((o) => counts[o] || state.outcomes.has(o)).map((outcome) =>
      el("button", { type: "button", class: `chip ${outcomeClass(outcome)}`, "data-outcome": outcome, "aria-pressed": String(state.outcomes.has(outcome)), onclick: () => {
        state.outcomes.has(outcome) ? state.outcomes.delete(outcome) : state.outcomes.add(outcome);
        state.limit = 6; draw(); chips.querySelector(`[data-outcome=${outcome}]`)?.focus();
      } }, el("span", { class: "glyph", text: OUTCOMES[outcome] }), outcome, el("small", { text: whole(counts[outcome] || 0) }))));
    list.replaceChildren(...shown.slice(0, state.limit).map(([problem, samples], i) => problemCard(problem, samples, state.query, i === 0)));
    more.hidden = shown.length <= state.limit;
    more.textContent = `show more (${whole(Math.max(0, shown.length - state.limit))} left)`;
    const all = state.source.total, here = state.source.problems.length;
    const whole_run = all === null ? `chosen evenly over ${state.source.steps} logged steps` : all > here ? `chosen evenly out of ${whole(all)}` : "all that were recorded";
    note.textContent = shown.length ? `${whole(shown.length)} of ${whole(here)} problems (${whole_run})` : "Nothing matches these filters.";
  }
  setup();
  return el("div", {}, sources.length > 1 ? el("div", { class: "filters" }, tabs) : null, el("div", { class: "filters" }, chips, steps, search), note, list, more);
}
