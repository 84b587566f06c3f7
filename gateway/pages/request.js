// One request: its DAG of stages, its runs in order, and why they were placed so.

import { element, svg } from "/static/dom.js";
import { STAGES } from "/static/recording.js";

// `outputs`: all outputs of the same request, this one among them; each has its own runs.
export function drawRequest(request, { outputs, t, beginsAt }) {
  const runs = [...request.runs].sort((a, b) => a.start - b.start);
  return [
    element("p", {}, element("code", {}, request.id)),
    element("p", {}, `${request.model} ${request.shape}${request.steps ? `, ${request.steps} steps` : ""}. ${fate(request, beginsAt)}`),
    dag(outputs, t),
    runTable(runs, request.arrive ?? beginsAt),
    ...explanation(request, t),
  ];
}

function fate(request, beginsAt) {
  const arrived = `Arrived at ${(request.arrive - beginsAt).toFixed(2)} s`;
  const due = request.deadline === null ? "" : `, due ${(request.deadline - request.arrive).toFixed(1)} s later`;
  if (request.end === null) return `${arrived}${due}; not finished yet.`;
  const took = (request.end - request.arrive).toFixed(2);
  if (request.reason) return `${arrived}${due}; ended without output after ${took} s: ${request.reason}`;
  return `${arrived}${due}; finished after ${took} s, ${request.onTime ? "on time" : "late"}.`;
}

// Encode, then a diffuse and a decode for every output: the engine's graph, with what each took.
function dag(outputs, t) {
  const height = 20 + 58 * outputs.length;
  const root = svg("svg", { viewBox: `0 0 480 ${height}`, width: 480, height, class: "dag", role: "img" });
  root.append(title(`Graph: encode, then diffuse and decode of ${outputs.map((output) => output.id).join(", ")}`));
  const middle = 20 + (58 * (outputs.length - 1)) / 2;
  outputs.forEach(({ runs }, i) => {
    const y = 10 + 58 * i;
    root.append(svg("path", { d: `M130 ${middle + 10} C 160 ${middle + 10}, 150 ${y + 20}, 180 ${y + 20}` }));
    root.append(svg("path", { d: `M310 ${y + 20} L 345 ${y + 20}` }));
    root.append(node(180, y, "diffuse", runs, t), node(345, y, "decode", runs, t));
  });
  root.append(node(0, middle - 10, "encode", outputs[0].runs, t));
  return root;
}

function title(text) {
  const made = svg("title");
  made.textContent = text;
  return made;
}

function node(x, y, stage, runs, t) {
  const mine = runs.filter((run) => run.stage === stage && run.purpose === "main");
  const took = mine.reduce((sum, run) => sum + run.end - run.start, 0);
  const degrees = [...new Set(mine.map((run) => run.degree))];
  const group = svg("g");
  const isDone = mine.some((run) => run.end <= t && run.outcome === "done");
  const box = svg("rect", { x, y, width: 130, height: 42, fill: isDone ? `var(--${stage})` : "none", "fill-opacity": 0.28, stroke: `var(--${stage})` });
  const [name, detail] = [svg("text", { x: x + 8, y: y + 17 }), svg("text", { x: x + 8, y: y + 34 })];
  name.textContent = stage;
  const isSkipped = stage === "encode" && runs.length > 0; // its embeddings were kept from an earlier request
  detail.textContent = mine.length ? `${took.toFixed(2)} s, degree ${degrees.join(" then ")}` : isSkipped ? "kept from earlier" : "not run yet";
  group.append(box, name, detail);
  return group;
}

function runTable(runs, zero) {
  const rows = runs.map((run) => {
    const steps = run.stage === "diffuse" ? `${run.stepFrom} to ${run.stepTo}` : "";
    const stage = run.purpose === "main" ? run.stage : `${run.stage} (${run.purpose.replace("_", " ")})`;
    const cells = [stage, (run.start - zero).toFixed(2), (run.end - run.start).toFixed(3), run.devices.join(" "), run.degree, run.requests.length, steps, run.outcome];
    return element("tr", {}, ...cells.map((cell, i) => element("td", { className: [1, 2, 4, 5].includes(i) ? "number" : "" }, cell)));
  });
  const heads = ["Stage", "Start s", "Took s", "Devices", "Degree", "Batch", "Steps", "Outcome"];
  const head = element("tr", {}, ...heads.map((name, i) => element("th", { scope: "col", className: [1, 2, 4, 5].includes(i) ? "number" : "" }, name)));
  const scroll = element("div", { className: "scroll", tabIndex: 0 }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)));
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "Runs of this request");
  return scroll;
}

// What was decided about it until `t`, oldest first.
function explanation(request, t) {
  const known = request.decisions.filter((d) => d.t <= t);
  const heading = element("h3", {}, "Why");
  if (!known.length) return [heading, element("p", { className: "muted" }, "No decision about it is remembered.")];
  const lines = known.map((d) => {
    const at = `${(d.t - (request.arrive ?? d.t)).toFixed(2)} s`;
    const where = d.devices.length ? ` on ${d.devices.join(" ")}` : "";
    return element("li", {}, element("span", { className: "muted" }, at), ` ${d.stage}${where}: ${d.why}`);
  });
  return [heading, element("ul", { className: "why" }, ...lines)];
}

export { STAGES };
