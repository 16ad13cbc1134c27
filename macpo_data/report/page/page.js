// The report draws itself from the JSON beside it. Whatever a model wrote becomes text nodes only.
const report = JSON.parse(document.getElementById("report-data").textContent);
const byId = (id) => document.getElementById(id);
const PER_PAGE = 20;
const ALL = "all";

// ---- elements ----

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null)); // strings become text nodes
  return element;
}

function options(select, values, labels = values) {
  const before = select.value;
  select.replaceChildren(...values.map((v, i) => make("option", { value: v }, String(labels[i]))));
  if (values.map(String).includes(before)) select.value = before;
}

const unique = (values) => [...new Set(values)];
const shown = (value) =>
  value == null ? "" : typeof value === "number" ? String(+value.toPrecision(4)) : String(value);

function table(rows, columns) {
  const head = make("tr", {}, ...Object.values(columns).map((c) => make("th", { scope: "col" }, c)));
  const body = rows.map((row) =>
    make("tr", {}, ...Object.keys(columns).map((key) =>
      make("td", {
        class: typeof row[key] === "number" ? "number" : key === "state" ? `state-${row[key]}` : null,
      }, shown(row[key])))));
  return make("div", { class: "scroll", tabindex: 0 },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

// ---- charts ----

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colours = () => [0, 1, 2, 3, 4, 5].map((n) => css(`--c${n}`));
const recipeColours = () => [0, 1, 2, 3].map((n) => css(`--r${n}`));
const SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down"];
const cycle = (list, count) => Array.from({ length: count }, (_, i) => list[i % list.length]);

function look(width) {
  const [ink, quiet, line] = [css("--ink"), css("--quiet"), css("--line")];
  return {
    background: null, font: getComputedStyle(document.body).fontFamily, view: { stroke: null },
    axis: { labelColor: quiet, titleColor: quiet, gridColor: line, domainColor: line,
      tickColor: line, titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 12 },
    legend: { labelColor: ink, titleColor: quiet, orient: "bottom", labelFontSize: 12, title: null,
      columns: Math.max(1, Math.floor(width / 115)), symbolStrokeWidth: 2 },
    range: { category: colours() }, point: { stroke: css("--paper") }, text: { color: ink, fontSize: 12 },
  };
}

// Drawn when they come near the screen, one after the other, so that the page opens at once.
let queue = Promise.resolve();
let charts = []; // those on the page, to be drawn anew when the colours change
const near = new IntersectionObserver((entries) => {
  for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
    near.unobserve(target);
    draw(charts.find((chart) => chart.plot === target));
  }
}, { rootMargin: "600px" });

function draw(chart) {
  const { plot, spec, rows } = chart;
  queue = queue.then(async () => {
    if (!plot.isConnected) return; // another recipe or learner was chosen since
    chart.made?.finalize();
    chart.made = await vegaEmbed(plot, { ...spec(), data: { values: rows }, config: look(plot.clientWidth) }, {
      mode: "vega-lite", ast: true, actions: false, renderer: "svg", defaultStyle: false,
      tooltip: { disableDefaultStyle: true },
    });
    plot.style.minHeight = 0;
    await new Promise((done) => setTimeout(done));
  }).catch((error) => { console.error(error); plot.append(String(error)); });
}

/** A figure with its title, its chart, and the same numbers as a table. */
function figure(place, title, note, rows, columns, spec) {
  const plot = make("div", { class: "plot", role: "img", "aria-label": `${title}. ${note}` });
  place.append(make("figure", {}, make("h3", {}, ...explained(title)), make("figcaption", {}, ...explained(note)), plot,
    make("details", {}, make("summary", {}, "as a table"), table(rows, columns))));
  const chart = { plot, rows, spec: () => ({ width: "container", height: 220, ...spec() }) };
  plot.style.minHeight = `${chart.spec().height + 70}px`; // about what it will take
  charts.push(chart);
  near.observe(plot);
}

const axis = (field, title, more = {}) => ({ field, type: "quantitative", title, ...more });
const ROUND = { field: "at", type: "ordinal", title: "round", axis: { labelAngle: 0 }, sort: null };

function colour(field, domain, more = {}) {
  return { field, type: "nominal", scale: { domain, range: cycle(colours(), domain.length) }, ...more };
}
/** Rounds have a ramp of their own: the later, the stronger. */
function ramp(round, last) {
  const channels = (name) => css(name).match(/[0-9a-f]{2}/gi).map((hex) => parseInt(hex, 16));
  const [early, late] = [channels("--early"), channels("--late")];
  const part = last ? round / last : 1;
  return `rgb(${early.map((c, i) => Math.round(c + part * (late[i] - c))).join(", ")})`;
}
// One colour and shape per agent on the whole page, whichever of them a chart shows.
const agentsOf = (recipe) =>
  unique([...recipe.agents, ...recipe.scores.map((s) => s.agent), ...recipe.winners.map((w) => w.agent)]);
const ranged = (list, all, names) => names.map((name) => list[all.indexOf(name) % list.length]);

// ---- scores: did it get better ----

const MEASURES = { gold: "Score from 0 to 1", reward: "Reward", win: "Win rate", win_lc: "Length-controlled win rate" };
const at = (row) => (row.round == null ? "base" : String(row.round));

function scoreSpec(series, rows, all, floor, palette) {
  const y = (field) => axis(field, null, { scale: { zero: false } });
  const student = { condition: { test: { field: "series", equal: series[0] }, value: 2.5 }, value: 1.25 };
  const tooltip = Object.entries(SCORE_COLUMNS).map(([field, title]) => ({ field, title }));
  const scale = (list) => ({ field: "series", type: "nominal", scale: { domain: series, range: ranged(list, all, series) } });
  return () => ({
    height: 260,
    encoding: { x: ROUND, xOffset: { field: "series", sort: series }, color: scale(palette()) },
    layer: [
      { transform: [{ filter: "datum.behavior !== 'ceiling'" }], mark: { type: "line", opacity: 0.7 },
        encoding: { y: y("mean"), strokeWidth: student } },
      { transform: [{ filter: "datum.behavior !== 'ceiling'" }],
        mark: { type: "rule", strokeWidth: 1.75 }, encoding: { y: y("low"), y2: { field: "high" } } },
      ...(rows.some((row) => row.behavior === "ceiling") ? [{ transform: [{ filter: "datum.behavior === 'ceiling'" }],
        mark: { type: "rule", strokeWidth: 1.75, strokeDash: [6, 3] }, encoding: { y: y("mean"), x: null, xOffset: null, tooltip } }] : []),
      { transform: [{ filter: "datum.behavior !== 'ceiling'" }],
        mark: { type: "point", size: 75, opacity: 1, strokeWidth: 1.75, filled: !rows.every((row) => row.behavior === "negative") },
        encoding: { y: y("mean"), shape: scale(SHAPES), tooltip } },
      ...(floor == null ? [] : [{ data: { values: [floor] }, mark: { type: "rule", strokeWidth: 1.75, strokeDash: [2, 3], color: css("--quiet") },
        encoding: { y: y("mean"), x: null, xOffset: null, color: null, tooltip: [{ field: "policy", title: "floor" }, { field: "mean" }] } }]),
      ...(rows.some((row) => row.against) ? [{ mark: { type: "rule", strokeDash: [2, 3], color: css("--quiet") },
        encoding: { y: { datum: 0.5 }, x: null, xOffset: null, color: null } }] : []),
    ],
  });
}

const SCORE_COLUMNS = { series: "agent", behavior: "behavior", at: "round", mean: "mean", low: "95 % from", high: "to",
  chars: "mean characters", truncated: "share cut", prompts: "prompts", by: "judged by" };

function scores(recipe) {
  const [first, folded] = [byId("score-figures"), byId("other-figures")];
  first.replaceChildren();
  folded.replaceChildren();
  const compared = report.recipes.length > 1;
  const all = compared
    ? report.recipes.flatMap((r) => r.scores
      .filter((s) => s.agent === r.student && s.behavior === "positive")
      .map((s) => ({ ...s, series: r.name, sampling: r.sampling })))
    : [];
  const own = recipe.scores.map((s) => ({ ...s, series: s.agent, sampling: recipe.sampling }));
  for (const rows of [all, own]) {
    // What unlike judges say of unlike recipes is no comparison, nor what answers drawn otherwise are worth.
    const key = (s) => [s.measure, s.against, rows === all ? s.by : "", s.sampling].join("\n");
    for (const group of unique(rows.map(key))) {
      const whole = rows.filter((s) => key(s) === group).map((s) => ({ ...s, at: at(s) }));
      whole.sort((a, b) => (a.round ?? -1) - (b.round ?? -1));
      // Near 0 they would squash the others into a line.
      for (const twins of [false, true]) {
      const part = whole.filter((s) => (s.behavior === "negative") === twins);
      if (!part.length) continue;
      const { measure, against } = part[0];
      const names = rows === own ? agentsOf(recipe) : report.recipes.map((r) => r.name);
      const series = names.filter((name) => part.some((s) => s.series === name));
      const place = twins || first.childElementCount ? folded : first;
      const title = MEASURES[measure] + (against ? ` against ${against}` : "")
        + (compared ? (rows === own ? ` in ${recipe.name}` : ", the student of each recipe") : "");
      const dashed = part.some((s) => s.behavior === "ceiling") ? "; dashed line: ceiling, the student trained on good answers" : "";
      const level = rows === own && !twins ? recipe.gaps.find((g) => g.measure === measure)?.floor : null;
      const dotted = level ? `; dotted line: floor, ${level.policy}` : "";
      figure(place, title + (twins ? ": the negative twins" : ""),
        `Held-out prompts, ${part[0].sampling}, by ${part[0].by}; mean and 95 % interval${dashed}${dotted}.`, part,
        SCORE_COLUMNS, scoreSpec(series, part, names, level, rows === own ? colours : recipeColours));
      }
    }
  }
  if (recipe.winners.length) winners(first, recipe);
  byId("more-figures").hidden = !folded.childElementCount;
}

function winners(place, recipe) {
  const rows = recipe.winners.map((w) => ({ ...w, at: at(w) }));
  const all = agentsOf(recipe);
  const agents = all.filter((a) => rows.some((w) => w.agent === a));
  const range = () => ranged(colours(), all, agents);
  figure(place, "From whom the student learned", "Share of the answers that it was trained to prefer, by writer.", rows,
    { at: "round", agent: "writer", pairs: "pairs", share: "share" }, () => ({
      height: 260,
      encoding: {
        x: { ...ROUND, scale: { paddingInner: 0.3 } },
        y: axis("share", null, { stack: "zero", axis: { format: "%" } }),
        order: { field: "agent" },
      },
      layer: [
        { mark: { type: "bar", stroke: css("--paper"), strokeWidth: 1.5 }, encoding: {
          color: { field: "agent", type: "nominal", scale: { domain: agents, range: range() } },
          tooltip: [{ field: "agent", title: "writer" }, { field: "at", title: "round" },
            { field: "pairs" }, { field: "share", format: ".0%" }] } },
        { transform: [{ filter: "datum.share > 0.08" }],
          mark: { type: "text", color: css("--paper"), fontWeight: 600 },
          encoding: { text: { field: "share", format: ".0%" },
            y: axis("share", null, { stack: "zero", bandPosition: 0.5 }),
            detail: { field: "agent" } } },
      ],
    }));
}

function probed(recipe) {
  const lines = recipe.gaps.map((g) => make("p", {}, ...explained(g.text))), short = [];
  for (const g of recipe.gaps) {
    const covered = g.rounds.filter((r) => r.mean != null && r.round > 0)
      .map((r) => `round ${r.round}: ${Math.round(100 * r.mean)} % (${Math.round(100 * r.low)} to ${Math.round(100 * r.high)})`);
    const level = (end) => `${end.policy}, ${end.mean.toFixed(2)}`;
    short.push([`gap recovered, by ${g.measure}`, `${covered.join(", ") || "not defined: the ceiling is not clearly above the floor"}; `
      + `floor ${level(g.floor)}; ceiling ${level(g.ceiling)}`]);
  }
  if (recipe.best) short.push(["best round", recipe.best.text.replace(/^best round: /, "")]);
  if (recipe.advice) short.push(["advice after round 0", `${recipe.advice.title}. ${recipe.advice.text}`]);
  byId("in-short").replaceChildren(...short.flatMap(([name, value]) => (
    [make("dt", {}, ...explained(name)), make("dd", {}, ...explained(value))])));
  if (recipe.advice) {
    const number = (e) => e.low == null ? shown(e.mean) : `${shown(e.mean)} (${shown(e.low)} to ${shown(e.high)})`;
    const rows = Object.entries(recipe.advice.numbers).map(([who, e]) => ({ who, right: number(e) }));
    lines.push(make("details", {}, make("summary", {}, "The probe: human pairs that nothing learns from"),
        table(rows, { who: "after round 0", right: "pairs ranked right, estimated" }),
        table(recipe.probe.map((r) => ({ ...r, perplexity: shown(r.perplexity), ranked_right: shown(r.ranked_right),
          score: r.score == null ? "" : shown(r.score) })),
          { agent: "agent", round: "round", perplexity: "perplexity of chosen", ranked_right: "ranked as labelled", score: "score" })));
  }
  byId("probe").replaceChildren(...lines);
}

/** Student, teachers and ceiling by round, as on the last screen of `macpo run`. */
function scoreTable(recipe) {
  const found = recipe.headline.table;
  byId("score-table").replaceChildren();
  if (!found) return;
  const columns = { name: "score", ...Object.fromEntries(found.rounds.map((r, i) => [`r${i}`, `round ${r}`])) };
  const rows = found.rows.map(({ name, means }) => (
    { name, ...Object.fromEntries(means.map((m, i) => [`r${i}`, m?.toFixed(2)])) }));
  const written = recipe.scores.filter((s) => s.agent === recipe.student && s.behavior === "positive");
  const long = (r) => written.find((s) => s.round === r)?.chars?.toFixed(0);
  rows.push({ name: `${recipe.student}'s answers, characters`, ...Object.fromEntries(found.rounds.map((r, i) => [`r${i}`, long(r)])) });
  byId("score-table").append(table(rows, columns), make("p", { class: "note" }, ...explained(`Score: ${found.meaning}`)));
}

/** Who writes, on how many prompts, and who judges. */
function about(recipe) {
  const { models, prompts, judges } = recipe.about;
  const roles = unique(models.map((m) => m.role));
  const rows = roles.map((role) => {
    const own = models.filter((m) => m.role === role);
    return [role + (own.length > 1 ? "s" : ""), own.map((m) => `${m.name} (${m.base})`).join(", ")];
  });
  const counts = { d1: "with human answers, for the start", d2: "to learn from in every round", test: "held out" };
  const known = Object.entries(counts).filter(([part]) => prompts[part] != null);
  if (known.length) rows.push(["prompts", known.map(([part, what]) => `${prompts[part].toLocaleString("en")} ${what}`).join(", ")]);
  rows.push(["judge", judges.join(", ") || "nobody yet"]);
  byId("about").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, ...explained(value))]));
}

/** Which recipe's student ends highest, where they are measured alike; else nothing. */
function versus() {
  const last = report.recipes.map((r) => {
    const own = r.scores.filter((s) => s.agent === r.student && s.behavior === "positive" && s.round != null);
    const one = own.filter((s) => own.every((o) => o.round <= s.round))[0];
    return one && { ...one, name: r.name, key: [one.measure, one.against, one.by, r.sampling].join("\n") };
  });
  byId("versus").textContent = "";
  if (last.length < 2) return;
  if (last.some((s) => s == null) || unique(last.map((s) => s.key)).length > 1) {
    byId("versus").textContent = "These recipes are not measured alike, so that no order of them is said.";
    return;
  }
  last.sort((a, b) => b.mean - a.mean);
  const [best, next] = last;
  const clear = best.low != null && next.high != null && best.low > next.high;
  byId("versus").textContent = `The student ends highest in ${last.map((s) => `${s.name} (${s.mean.toFixed(2)})`).join(", then ")}: `
    + (clear ? `${best.name} is clearly ahead.` : `${best.name} and ${next.name} are not clearly apart, their 95 % intervals overlap.`);
}

function head(recipe) {
  const done = recipe.steps.filter((s) => s.state === "done").length;
  byId("kicker").textContent =
    `macpo report · ${recipe.name} · ${recipe.method} · ${done} of ${recipe.steps.length} steps done`;
  const top = recipe.headline;
  byId("title").textContent = top.verdict.title;
  byId("title").className = top.verdict.state;
  byId("lead").textContent = top.verdict.text;
  byId("gap").textContent = top.gap ?? "";
  const actions = [top.unmeasured, ...top.warnings, top.advice && `Advice: ${top.advice}`].filter(Boolean);
  byId("actions-block").hidden = !actions.length;
  byId("actions").replaceChildren(...actions.map((w) => make("li", {}, ...explained(w))));
  about(recipe);
  versus();
  scoreTable(recipe);
  document.title = `${recipe.name}: macpo report`;
  probed(recipe);
  byId("expert").textContent = `For the expert (signs of failure: ${recipe.warnings.length})`;
  byId("warnings").replaceChildren(...recipe.warnings.map((w) => make("li", {}, ...explained(w))));
  const compared = byId("compared");
  compared.replaceChildren();
  if (report.recipes.length < 2) return;
  const rows = report.recipes.map((r) => ({ name: r.name, verdict: r.headline.verdict.title,
    done: `${r.steps.filter((s) => s.state === "done").length} of ${r.steps.length}`,
    warnings: r.warnings.length, differs: r.differs.length ? r.differs.map(([path, a, b]) => `${path}: ${a} → ${b}`).join("; ") : "" }));
  compared.append(make("h3", {}, "Recipes"), table(rows, { name: "recipe", verdict: "student",
    done: "steps done", warnings: "warnings", differs: "differs from the first in" }));
}

// ---- plan, data, training ----

function plan(recipe) {
  const rows = recipe.steps.map((s) => ({ ...s, made: (s.made ?? "").replace("T", " ").replace("Z", ""),
    result: s.waits.length ? `waits for ${s.waits.join(", ")}` : s.result }));
  const counts = unique(rows.map((s) => s.state))
    .map((state) => `${rows.filter((s) => s.state === state).length} ${state}`);
  const full = table(rows, { round: "round", step: "step", learner: "learner", state: "state", rows: "rows",
    seconds: "seconds", made: "made (UTC)", result: "result", content: "content sha256" });
  byId("steps").replaceChildren(make("p", {}, counts.join(", ") + "."),
    make("details", counts.length > 1 ? { open: "" } : {}, make("summary", {}, "all steps"), full));
}

const SPREAD = {
  perplexity: ["Perplexity", "Under the learner before training.", "log"],
  length: ["Length", "Characters of the answer.", "linear"],
  margin: ["Margin", "How much likelier than the rejected answer, in nats per token; above 0 the learner prefers it.", "linear"],
};
const KINDS = ["candidates", "chosen", "rejected"];

function data(recipe) {
  const place = byId("data-figures");
  place.replaceChildren();
  const learner = byId("data-learner").value;
  const range = () => [css("--quiet"), css("--good"), css("--bad")];
  for (const [measure, [title, note, type]] of Object.entries(SPREAD)) {
    const rows = recipe.spread.filter((r) => r.learner === learner && r.measure === measure)
      .map((r) => ({ ...r, at: at(r) }));
    if (!rows.length) continue;
    const kinds = KINDS.filter((kind) => rows.some((r) => r.kind === kind));
    const drawn = (list) => ranged(list, KINDS, kinds);
    // An axis ends where the data do.
    const y = (field) => axis(field, null, { scale: type === "log" ? { type, nice: false } : { zero: false } });
    figure(place, title, `${note} Median, middle half, and 5 to 95 % of the answers.`, rows,
      { at: "round", kind: "", rows: "rows", low: "5 %", lower: "25 %", middle: "median", upper: "75 %", high: "95 %" },
      () => ({
        encoding: { x: ROUND, xOffset: { field: "kind", sort: KINDS }, color: { field: "kind", type: "nominal", scale: { domain: kinds, range: drawn(range()) } } },
        layer: [
          { mark: { type: "rule", strokeWidth: 1.5 }, encoding: { y: y("low"), y2: { field: "high" } } },
          { mark: { type: "bar", size: 9 }, encoding: { y: y("lower"), y2: { field: "upper" } } },
          { mark: { type: "point", filled: true, size: 60, opacity: 1, stroke: css("--paper"), strokeWidth: 1.5 },
            encoding: { y: y("middle"), shape: { field: "kind", type: "nominal", scale: { domain: kinds, range: drawn(SHAPES.slice(0, 3)) } }, tooltip: [
              { field: "kind" }, { field: "at", title: "round" }, { field: "middle", title: "median" },
              { field: "low", title: "5 %" }, { field: "high", title: "95 %" }, { field: "rows" }] } },
        ],
      }));
  }
  losses(place, recipe);
}

function losses(place, recipe) {
  const rows = recipe.losses.map((r) => ({ ...r, at: r.round ?? "source", reason: inWords(r.reason) }));
  if (!rows.length) {
    place.append(make("figure", {}, make("h3", {}, "Rows left out"), make("p", {}, "No filter caught a row.")));
    return;
  }
  const kinds = unique(rows.map((r) => r.what));
  const tooltip = ["reason", "what"].map((field) => ({ field })).concat({ field: "rows", aggregate: "sum" });
  const shades = { dropped: "--ink", noted: "--quiet", unusable: "--c5" };
  figure(place, "Rows left out", "Rows that a filter dropped or noted, or a source could not use; all learners and rounds.", rows,
    { at: "round", learner: "learner", what: "", reason: "reason", rows: "rows", share: "share" }, () => ({
      height: 30 * unique(rows.map((r) => r.reason)).length,
      mark: { type: "bar", height: 14 },
      encoding: {
        y: { field: "reason", type: "nominal", title: null, sort: "-x", axis: { labelLimit: 260 } },
        x: axis("rows", null, { aggregate: "sum", stack: "zero", axis: { tickMinStep: 1, tickCount: 5 } }),
        color: { field: "what", type: "nominal", scale: { domain: kinds, range: kinds.map((kind) => css(shades[kind])) } }, tooltip,
      },
    }));
}

const CURVES = { loss: "Loss", margin: "Reward margin", accuracy: "Accuracy", chosen_logprob: "Log-probability of chosen",
  rejected_logprob: "Log-probability of rejected", dpo: "DPO term", sft: "SFT term", grad_norm: "Gradient norm" };

function curves(recipe) {
  const place = byId("curve-figures");
  place.replaceChildren();
  const own = recipe.curves.filter((c) => c.learner === byId("curve-learner").value);
  const name = (c) => `round ${c.round}${c.behavior === "positive" ? "" : `, ${c.behavior}`}`;
  const dash = { positive: [1, 0], negative: [4, 3], ceiling: [1, 2] };
  const last = Math.max(...own.map((c) => c.round));
  for (const [metric, title] of Object.entries(CURVES)) {
    const rows = own.flatMap((c) => (c.columns[metric] ?? []).map((value, i) => (
      { step: c.columns.step[i], value, series: name(c) }))).filter((row) => row.value != null);
    if (!rows.length) continue;
    const drawn = own.filter((c) => rows.some((row) => row.series === name(c)));
    const names = drawn.map(name);
    figure(place, title, "By optimiser step; the later the round, the stronger the colour.", rows, { series: "round", step: "step", value: title }, () => ({
      height: 150,
      mark: { type: "line", strokeWidth: 1.75 },
      encoding: {
        x: axis("step", "step", { axis: { tickMinStep: 1, tickCount: 5 } }),
        y: axis("value", null, { scale: { zero: false }, axis: { tickCount: 5 } }),
        color: { field: "series", type: "nominal",
          scale: { domain: names, range: drawn.map((c) => ramp(c.round, last)) } },
        strokeDash: { field: "series", type: "nominal",
          scale: { domain: names, range: drawn.map((c) => dash[c.behavior]) } },
      },
    }));
  }
  if (!own.length) place.append(make("p", {}, "No training of this learner has left a curve yet."));
}

// ---- texts ----

const text = (number) => (number == null ? "" : report.texts[number]);
const written = (value) => make("div", { class: "text", dir: "auto" }, value || "(nothing was written)");

function conversation(prompt) {
  return make("div", {}, ...prompt.flatMap(([role, number]) =>
    [make("span", { class: "role" }, role), written(text(number))]));
}

const CHANGES = { "all prompts": null, "better than in the first round": 1, "worse than in the first round": -1, "as good as in the first round": 0 };

/** Whether an agent's last answer is scored above (1), below (-1) or like (0) its first; null where nobody scored. */
function changed(found, agent) {
  const own = found.answers.filter((a) => a.agent === agent && a.behavior === "positive" && a.round != null);
  own.sort((a, b) => a.round - b.round);
  const [before, after] = [own[0], own.at(-1)];
  const measure = before && Object.keys(before.scores).find((k) => before.scores[k] != null && after.scores[k] != null);
  return before === after || !measure ? null : Math.sign(after.scores[measure] - before.scores[measure]);
}

window.macpoChanged = changed;

function answers(recipe) {
  const asked = byId("answer-search").value.toLowerCase();
  const agent = byId("answer-agent").value;
  const way = CHANGES[byId("answer-change").value];
  const found = recipe.answers.filter((a) => way == null || changed(a, agent) === way).filter((a) => !asked
    || [...a.prompt.map((m) => m[1]), ...a.answers.map((x) => x.text)].some((n) => text(n).toLowerCase().includes(asked)));
  state.answer = Math.max(0, Math.min(state.answer, found.length - 1));
  byId("answer-back").disabled = state.answer <= 0;
  byId("answer-on").disabled = state.answer >= found.length - 1;
  byId("answer-at").textContent = found.length ? `${state.answer + 1} of ${found.length}` : "none";
  const one = found[state.answer];
  if (!one) {
    byId("answer").replaceChildren(make("p", {}, recipe.answers.length ? "No prompt matches." : "No answers yet: run macpo eval."));
    return;
  }
  const own = one.answers.filter((a) => a.agent === agent);
  own.sort((a, b) => (a.behavior > b.behavior ? -1 : a.behavior < b.behavior ? 1 : (a.round ?? -1) - (b.round ?? -1)));
  byId("answer").replaceChildren(make("article", {}, conversation(one.prompt),
    make("div", { class: "sides" }, ...own.map((a) => make("div", { class: "side" },
      make("h3", {}, a.round == null ? "base" : `round ${a.round}${a.behavior === "positive" ? "" : ` (${a.behavior})`}`),
      written(text(a.text)),
      make("p", { class: "meta" }, [...Object.entries(a.scores).filter(([, v]) => v != null).map(([k, v]) => `${k} ${shown(v)}`),
        `${[...(text(a.text) ?? "")].length} characters`, a.finish_reason === "stop" ? null : a.finish_reason === "length" ? "cut by the token limit" : a.finish_reason].filter(Boolean).join(" · ")))))));
}

const place = Object.fromEntries(report.pair_columns.map((name, i) => [name, i]));
const SIDE = { perplexity: "perplexity", sum_logprob: "log-probability", num_tokens: "tokens", eot_logprob: "end of turn" };

function side(pair, name) {
  const value = (column) => pair[place[`${name}_${column}`]];
  if (value("agent") == null) return null; // rows to fine-tune on have one side
  const body = text(value("text"));
  const facts = Object.entries(SIDE).filter(([column]) => value(column) != null)
    .map(([column, label]) => `${label} ${shown(value(column))}`);
  const finish = value("finish_reason");
  return make("div", { class: `side ${name}` }, make("h3", {}, `${name}, by ${value("agent")}`), written(body),
    make("p", { class: "meta" }, [...facts, `${[...body].length} characters`, finish === "stop" ? null : finish].filter(Boolean).join(" · ")));
}

function others(pair) {
  const rows = pair[place.others];
  if (!rows.length) return null;
  return make("details", {}, make("summary", {}, `${rows.length} not chosen`),
    make("div", { class: "sides" }, ...rows.map(([agent, number, perplexity, rank, reason]) =>
      make("div", { class: "side" }, make("h3", {}, agent), written(text(number)), make("p", { class: "meta" },
        [rank && `rank ${rank}`, perplexity != null && `perplexity ${shown(perplexity)}`, reason && `left out: ${inWords(reason)}`].filter(Boolean).join(" · "))))));
}

function card(pair) {
  const margin = marginOf(pair);
  return make("article", { class: "pair" },
    make("p", { class: "meta" }, [`round ${pair[place.round]}`, pair[place.learner], pair[place.id],
      margin == null ? null : `margin ${shown(margin)} nats per token`].filter(Boolean).join(" · ")),
    conversation(pair[place.prompt]),
    make("div", { class: "sides" }, ...[side(pair, "chosen"), side(pair, "rejected")].filter(Boolean)), others(pair));
}

function marginOf(pair) {
  const [a, b] = [pair[place.chosen_perplexity], pair[place.rejected_perplexity]];
  return a == null || b == null ? null : Math.log(b) - Math.log(a);
}

const ORDERS = {
  "as drawn": null,
  "perplexity of chosen, highest": (p) => -(p[place.chosen_perplexity] ?? -Infinity),
  "perplexity of chosen, lowest": (p) => p[place.chosen_perplexity] ?? Infinity,
  "margin, lowest": (p) => marginOf(p) ?? Infinity,
  "margin, highest": (p) => -(marginOf(p) ?? -Infinity),
  "chosen, longest": (p) => -text(p[place.chosen_text]).length,
};

const lower = []; // texts in lower case, made when first searched
function contains(pair, words) {
  const numbers = [...pair[place.prompt].map((m) => m[1]), pair[place.chosen_text], pair[place.rejected_text]];
  return numbers.some((n) => n != null && (lower[n] ??= report.texts[n].toLowerCase()).includes(words));
}

function pairs() {
  const words = byId("pair-search").value.toLowerCase();
  const want = (id, value) => [ALL, String(value)].includes(byId(id).value);
  const own = report.pairs.filter((p) => p[place.recipe] === state.recipe);
  state.found = own.filter((p) => want("pair-round", p[place.round]) && want("pair-learner", p[place.learner])
    && want("pair-agent", p[place.chosen_agent]) && (!words || contains(p, words)));
  const order = ORDERS[byId("pair-order").value];
  if (order) state.found = state.found.map((p) => [order(p), p]).sort((a, b) => a[0] - b[0]).map((x) => x[1]);
  byId("pair-count").textContent = `${state.found.length.toLocaleString("en")} of ${own.length.toLocaleString("en")} pairs on this page`;
  byId("pair-list").replaceChildren();
  more();
}

function more() {
  const list = byId("pair-list");
  const from = list.childElementCount;
  list.append(...state.found.slice(from, from + PER_PAGE).map(card));
  byId("pair-more").hidden = list.childElementCount >= state.found.length;
}

// ---- provenance ----

function provenance(recipe) {
  const facts = recipe.provenance;
  const block = (title, body) => make("details", {}, make("summary", {}, title), make("pre", { tabindex: 0 }, body));
  byId("facts").replaceChildren(
    make("p", {}, "The command: ", ...facts.commands.map((c) => make("code", {}, c)), `, seed ${facts.seed}. Fingerprints stand in the plan above.`),
    block("Versions that made the results", JSON.stringify(facts.versions, null, 1)),
    block("Pinned revisions", JSON.stringify(facts.pins, null, 1)),
    block("Recipe", facts.recipe),
    make("p", { class: "note" }, `Page: ${Object.entries(report.versions.versions).map((v) => v.join(" ")).join(", ")}.`));
}

// ---- the page ----

const state = { recipe: 0, answer: 0, found: [] };
const recipe = () => report.recipes[state.recipe];

function show() {
  charts = [];
  const one = recipe();
  const own = report.pairs.filter((p) => p[place.recipe] === state.recipe);
  const of = (name) => unique(own.map((p) => p[place[name]])).sort();
  for (const [id, name] of [["pair-round", "round"], ["pair-learner", "learner"], ["pair-agent", "chosen_agent"]]) {
    options(byId(id), [ALL, ...of(name)]);
  }
  options(byId("pair-order"), Object.keys(ORDERS));
  options(byId("answer-change"), Object.keys(CHANGES));
  if (of("learner").includes(one.student)) byId("pair-learner").value = one.student;
  const learners = one.agents.filter((a) => one.steps.some((s) => s.learner === a));
  for (const id of ["data-learner", "curve-learner", "answer-agent"]) options(byId(id), learners);
  head(one); scores(one); plan(one); data(one); curves(one); answers(one); pairs(); provenance(one);
  // Two frames later what is near the screen is in the queue.
  requestAnimationFrame(() => requestAnimationFrame(() => queue.then(() => {
    document.documentElement.dataset.ready = "yes";
  })));
}

function on(event, ids, work) {
  for (const id of ids) byId(id).addEventListener(event, work);
}

options(byId("recipe"), report.recipes.map((_, i) => i), report.recipes.map((r) => r.name));
byId("choose").hidden = report.recipes.length < 2;
on("change", ["recipe"], () => { state.recipe = Number(byId("recipe").value); state.answer = 0; show(); });
on("change", ["data-learner"], () => data(recipe()));
on("change", ["curve-learner"], () => curves(recipe()));
on("change", ["answer-agent"], () => answers(recipe()));
on("change", ["answer-change"], () => { state.answer = 0; answers(recipe()); });
on("input", ["answer-search"], () => { state.answer = 0; answers(recipe()); });
on("click", ["answer-back"], () => { state.answer -= 1; answers(recipe()); });
on("click", ["answer-on"], () => { state.answer += 1; answers(recipe()); });
on("change", ["pair-round", "pair-learner", "pair-agent", "pair-order"], pairs);
on("input", ["pair-search"], pairs);
on("click", ["pair-more"], more);
// What a link of the top leads to is unfolded.
for (const link of document.querySelectorAll("nav a")) {
  link.addEventListener("click", () => {
    const fold = document.querySelector(`${link.getAttribute("href")} > details.fold`);
    if (fold) fold.open = true;
  });
}
glossary();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change",
  () => charts.filter((chart) => chart.made).forEach(draw));
show();
