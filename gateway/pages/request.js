// One request: its DAG of stages, its runs in order, and why they were placed so.

import { element, svg } from "/static/dom.js";
import { rangeOf } from "/static/recording.js";
import { clock } from "/static/timeline.js";

const NODE_PX = 132;
const GAP_PX = 24;

// The graph is of all outputs of the same request; each has its own runs.
export function drawRequest(recording, request, t) {
  const { beginsAt } = recording;
  const runs = recording.runsFor(request);
  const outputs = recording.outputsOf(request).map((output) => ({ id: output.id, runs: recording.runsFor(output) }));
  return [
    element("p", {}, element("code", {}, request.id)),
    element("p", {}, `${request.model} ${request.shape}${request.steps ? `, ${request.steps} steps` : ""}. ${fate(request, beginsAt)}`),
    dag(outputs, t),
    runTable(runs, request.arrive ?? beginsAt),
    ...explanation(request, t),
  ];
}

function fate(request, beginsAt) {
  const arrived = `Arrived at ${clock(request.arrive - beginsAt)}`;
  const due = request.deadline === null ? "" : `, due ${(request.deadline - request.arrive).toFixed(1)} s later`;
  if (request.end === null) return `${arrived}${due}; not finished yet.`;
  const took = (request.end - request.arrive).toFixed(2);
  if (request.reason) return `${arrived}${due}; ended without output after ${took} s: ${request.reason}`;
  return `${arrived}${due}; finished after ${took} s, ${request.onTime ? "on time" : "late"}.`;
}

// Encode, then a diffuse and a decode for every output: the engine's graph, with what each took.
function dag(outputs, t) {
  const height = 20 + 58 * outputs.length;
  const root = svg("svg", { viewBox: `0 0 ${3 * NODE_PX + 2 * GAP_PX + 2} ${height}`, width: 3 * NODE_PX + 2 * GAP_PX + 2, height, class: "dag", role: "img" });
  root.append(title(`Graph: encode, then diffuse and decode of ${outputs.map((output) => output.id).join(", ")}`));
  const middle = 20 + (58 * (outputs.length - 1)) / 2;
  outputs.forEach(({ runs }, i) => {
    const y = 10 + 58 * i;
    const [from, bend, to] = [xOf(0) + NODE_PX, xOf(0) + NODE_PX + GAP_PX / 2, xOf(1)];
    root.append(svg("path", { d: `M${from} ${middle + 10} C ${bend} ${middle + 10}, ${bend} ${y + 20}, ${to} ${y + 20}` }));
    root.append(svg("path", { d: `M${to + NODE_PX} ${y + 20} L ${xOf(2)} ${y + 20}` }));
    root.append(node(xOf(1), y, "diffuse", runs, t), node(xOf(2), y, "decode", runs, t));
  });
  root.append(node(xOf(0), middle - 10, "encode", outputs[0].runs, t));
  return root;
}

function xOf(column) {
  return 1 + column * (NODE_PX + GAP_PX);
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
  const current = mine.find((run) => run.outcome === "running");
  const group = svg("g");
  const isDone = mine.some((run) => run.end <= t && run.outcome === "done");
  const box = svg("rect", { x, y, width: NODE_PX, height: 42, class: current ? "running" : "", fill: isDone ? `var(--${stage})` : "none", "fill-opacity": 0.28, stroke: `var(--${stage})` });
  const [name, detail] = [svg("text", { x: x + 8, y: y + 17 }), svg("text", { x: x + 8, y: y + 34 })];
  name.textContent = stage;
  const isSkipped = stage === "encode" && runs.length > 0; // its embeddings were kept from an earlier request
  if (current) detail.textContent = current.steps ? `step ${current.stepTo} of ${current.steps}` : "running";
  else detail.textContent = mine.length ? `${took.toFixed(2)} s, degree ${degrees.join(" then ")}` : isSkipped ? "kept from earlier" : "not run yet";
  group.append(box, name, detail);
  return group;
}

function runTable(runs, zero) {
  if (!runs.length) return element("p", { className: "muted" }, "No stage of it has run yet.");
  const rows = runs.map((run) => {
    const steps = run.stage === "diffuse" ? `${run.stepFrom} to ${run.stepTo}` : "";
    const stage = run.purpose === "main" ? run.stage : `${run.stage} (${run.purpose.replace("_", " ")})`;
    const cells = [stage, `${(run.start - zero).toFixed(2)} s`, `${(run.end - run.start).toFixed(2)} s`, rangeOf(run.devices), run.degree, run.requests.length, steps, run.outcome];
    return element("tr", {}, ...cells.map((cell, i) => element("td", { className: [1, 2, 4, 5].includes(i) ? "number" : "" }, cell)));
  });
  const heads = ["Stage", "Started after", "Took", "Devices", "Degree", "Batch", "Steps", "Outcome"];
  const head = element("tr", {}, ...heads.map((name, i) => element("th", { scope: "col", className: [1, 2, 4, 5].includes(i) ? "number" : "" }, name)));
  const scroll = element("div", { className: "scroll", tabIndex: 0 }, element("table", { className: "runs" }, element("thead", {}, head), element("tbody", {}, ...rows)));
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
    const where = d.devices.length ? ` on ${rangeOf(d.devices)}` : "";
    return element("li", {}, element("span", { className: "muted" }, at), ` ${d.stage}${where}: ${d.why}`);
  });
  return [heading, element("ul", { className: "why" }, ...lines)];
}
