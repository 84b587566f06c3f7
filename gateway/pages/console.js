// The console: one Recording, from the live server or from an event file, and the views of it.

import { Recording, classOf, quantile, shortId } from "/static/recording.js";
import { Timeline, clock } from "/static/timeline.js";
import { StreamError, bearer, events } from "/static/sse.js";
import { drawRequest } from "/static/request.js";
import { drawResidency } from "/static/residency.js";
import { element, fill } from "/static/dom.js";

const LIVE_KEPT_S = 1800;
const LIVE_SPAN_S = 60;
const SHOWN_REQUESTS = 200;
const SHOWN_PLACEMENTS = 8;
const RETRY_MS = 2000;

const $ = (id) => document.getElementById(id);

const page = {
  recording: new Recording(LIVE_KEPT_S),
  state: null, // the server's last word on devices and queue; null for files
  isLive: true,
  generation: 0, // of the source; an older one's messages are not for us
  leave: new AbortController(), // of the stream that we listen to
  chosen: null,
};

const timeline = new Timeline($("timeline"), {
  tooltip: $("tooltip"),
  onMove: () => ($("follow").checked = false),
  onChoose: (run) => choose(run.requests[0]),
});

function now() {
  if (page.isLive) return page.state?.t ?? page.recording.endsAt;
  const { beginsAt, endsAt } = page.recording;
  return (beginsAt ?? 0) + ((endsAt - (beginsAt ?? 0)) * Number($("scrub").value)) / Number($("scrub").max);
}

function say(text, state) {
  $("source").textContent = text;
  $("source").dataset.state = state;
}

function complain(message) {
  $("trouble").hidden = !message;
  $("trouble").textContent = message ?? "";
}

// ---------------------------------------------------------------- sources

async function goLive() {
  const isOurs = leaveSource();
  Object.assign(page, { recording: new Recording(LIVE_KEPT_S), state: null, isLive: true, chosen: null });
  $("scrub-box").hidden = $("live").hidden = true;
  $("follow-box").hidden = false;
  $("follow").checked = true;
  timeline.chosen = null;
  timeline.recording = page.recording;
  timeline.span = LIVE_SPAN_S;
  while (isOurs()) {
    try {
      await listen(isOurs);
      if (!isOurs()) return;
      say("stream ended, trying again", "broken");
    } catch (error) {
      if (!isOurs()) return;
      say("not connected", "broken");
      complain(error instanceof StreamError ? error.message : "The server does not answer.");
      const wantsKey = error instanceof StreamError && (error.status === 401 || error.status === 403);
      $("key-form").hidden = !wantsKey;
      render();
      if (wantsKey) return;
    }
    await new Promise((resume) => setTimeout(resume, RETRY_MS));
  }
}

// Ends the stream of the source before; returns whether the one that begins now is still shown.
function leaveSource() {
  const generation = (page.generation += 1);
  page.leave.abort();
  page.leave = new AbortController();
  return () => generation === page.generation;
}

async function listen(isOurs) {
  const headers = bearer(sessionStorage.getItem("trident-admin-key"));
  const { signal } = page.leave;
  for await (const { event, data } of events("/console/stream", { headers, signal })) {
    if (!isOurs()) return;
    say("live", "live");
    complain(null);
    $("key-form").hidden = true;
    if (event === "start") page.recording = timeline.recording = new Recording(LIVE_KEPT_S);
    else if (event === "fact") page.recording.take(JSON.parse(data));
    else if (event === "state") {
      page.state = JSON.parse(data);
      page.recording.noteTime(page.state.t);
      page.recording.noteRunning(page.state.devices, page.state.t);
      page.recording.forget();
      render();
    }
  }
}

async function openFile(file) {
  const isOurs = leaveSource();
  const recording = new Recording();
  $("key-form").hidden = true;
  say(`reading ${file.name}`, "");
  try {
    await read(file, recording, isOurs);
  } catch (error) {
    if (isOurs()) complain(`${file.name} cannot be read: ${error.message}`);
    return;
  }
  if (!isOurs()) return;
  show(file.name, recording);
}

async function read(file, recording, isOurs) {
  const bytes = file.name.endsWith(".gz") ? file.stream().pipeThrough(new DecompressionStream("gzip")) : file.stream();
  const reader = bytes.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = done ? "" : lines.pop();
    for (const line of lines) recording.takeLine(line);
    if (!isOurs()) return reader.cancel();
    if (done) return;
  }
}

function show(name, recording) {
  const isEmpty = recording.devices.length === 0;
  complain(
    isEmpty
      ? `${name} holds no cluster: it is no event file of \`trident simulate --events\` or \`trident serve --events\`.`
      : recording.malformed > 0
        ? `${recording.malformed} lines of ${name} are no events and were passed over.`
        : null,
  );
  Object.assign(page, { recording, state: null, isLive: false, chosen: null });
  say(`event file: ${name}`, "");
  $("scrub-box").hidden = $("live").hidden = false;
  $("follow-box").hidden = true;
  $("follow").checked = false;
  timeline.chosen = null;
  timeline.now = null;
  if (!isEmpty) timeline.show(recording);
  render();
}

// ---------------------------------------------------------------- views

function render() {
  const t = now();
  const { recording } = page;
  if (page.isLive && $("follow").checked) timeline.follow(t);
  else timeline.draw();
  if (!page.isLive) {
    timeline.now = t;
    $("scrub-time").textContent = clock(t - (recording.beginsAt ?? 0), 1);
  }
  const from = page.isLive ? t - LIVE_KEPT_S : -Infinity;
  const outcomes = recording.outcomes(from, t);
  drawFacts(outcomes[0], t);
  drawOutcomes(outcomes);
  drawQueue(t);
  drawResidency($("residency"), recording, page.state, t);
  drawPlacements(t);
  drawRequests(t);
  if (page.chosen) drawChosen(t);
}

function drawFacts(all, t) {
  const { recording } = page;
  if (!recording.devices.length) return fill($("facts"), []);
  const begin = Math.max(recording.beginsAt ?? t, t - 60);
  const running = recording.devices.filter((device) => isBusy(device, t)).length;
  const facts = {
    Time: clock(t - (recording.beginsAt ?? t)),
    "Devices busy": `${running} of ${recording.devices.length}`,
    "Busy, last minute": percent(recording.utilisation(begin, t)),
    Finished: `${all.ended - all.rejected}`,
    Rejected: `${all.rejected}`,
    "On time": all.ended ? percent(all.met / all.ended) : "-",
    "Mean latency": seconds(mean(all.latencies)),
    "P95 latency": seconds(quantile(all.latencies, 0.95)),
    Placement: placementOf(t),
  };
  fill($("facts"), Object.entries(facts).map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
}

function placementOf(t) {
  const version = page.state?.placement_version ?? page.recording.placementAt(t)?.version;
  const switches = page.recording.switches.filter((s) => s.t <= t).length;
  return version === undefined ? `${switches} switches` : `version ${version}`;
}

function drawPlacements(t) {
  const { placements, beginsAt } = page.recording;
  const lines = placements.filter((p) => p.t <= t).slice(-SHOWN_PLACEMENTS);
  const items = lines.map((p) => element("li", {}, `${clock(p.t - (beginsAt ?? 0))} version ${p.version}${p.why ? `: ${p.why}` : ""}`));
  fill($("placements"), items.length ? items : [element("li", { className: "muted" }, "none yet")]);
}

function isBusy(device, t) {
  const live = page.state?.devices.find((d) => d.id === device.id);
  return live ? live.busy !== null : page.recording.runningAt(device, t) !== null;
}

function drawOutcomes(rows) {
  const body = rows.map((row) =>
    tr([
      row.name,
      row.ended,
      row.ended ? percent(row.met / row.ended) : "-",
      seconds(mean(row.latencies)),
      seconds(quantile(row.latencies, 0.5)),
      seconds(quantile(row.latencies, 0.95)),
      row.rejected,
    ]),
  );
  table($("slo"), ["Class", "Ended", "On time", "Mean", "P50", "P95", "Rejected"], body, "");
}

function drawQueue(t) {
  const rows = page.state ? queueOfState(page.state, t) : page.recording.waitingAt(t);
  const body = rows.map((row) =>
    tr([
      row.name,
      row.waiting,
      seconds(t - row.oldest),
      row.nextDeadline === Infinity ? "-" : ahead(row.nextDeadline - t),
      finishOf(row, t),
    ]),
  );
  const finish = page.isLive ? "Predicted finish" : "Recorded finish";
  table($("queue"), ["Class", "Waiting", "Longest wait", "Next deadline", finish], body, "nothing waits");
}

// A server predicts; a file knows.
function finishOf(row, t) {
  const at = page.state ? row.predicted : row.lastEnd;
  return at === null || at === Infinity ? "unknown" : ahead(at - t);
}

function queueOfState(state, t) {
  const classes = new Map();
  for (const task of state.waiting) {
    const name = classOf(task);
    const row = classes.get(name) ?? { name, waiting: 0, oldest: t, nextDeadline: Infinity, predicted: null };
    row.waiting += 1;
    row.oldest = Math.min(row.oldest, task.since);
    row.nextDeadline = Math.min(row.nextDeadline, task.deadline);
    if (task.predicted_finish !== null) row.predicted = Math.max(row.predicted ?? 0, task.predicted_finish);
    classes.set(name, row);
  }
  return [...classes.values()];
}

function drawRequests(t) {
  const wanted = $("find").value.trim().toLowerCase();
  const found = [...page.recording.requests.values()]
    .filter((r) => r.arrive !== null && r.arrive <= t)
    .filter((r) => !wanted || `${r.id} ${classOf(r)}`.toLowerCase().includes(wanted))
    .sort((a, b) => b.arrive - a.arrive)
    .slice(0, SHOWN_REQUESTS);
  const body = found.map((r) => {
    const open = element("button", { className: "link", type: "button", onclick: () => choose(r.id, true) }, shortId(r.id));
    open.title = r.id;
    const row = tr([open, classOf(r), clock(r.arrive - page.recording.beginsAt), outcomeOf(r, t), latencyOf(r, t)]);
    row.className = "pick";
    row.ariaSelected = String(r.id === page.chosen);
    return row;
  });
  keepFocus($("requests"), () => table($("requests"), ["Request", "Class", "Arrived", "Outcome", "Latency"], body, wanted ? "no such request" : "no request yet"));
}

// Replacing a table would lose the keyboard's place in it.
function keepFocus(holder, replace) {
  const focused = holder.contains(document.activeElement) ? document.activeElement.textContent : null;
  replace();
  if (focused === null) return;
  [...holder.querySelectorAll("button")].find((button) => button.textContent === focused)?.focus();
}

function outcomeOf(request, t) {
  if (request.end !== null && request.end <= t) {
    if (request.reason) return element("span", { className: "bad", title: request.reason }, "no output");
    return request.onTime ? element("span", { className: "good" }, "on time") : element("span", { className: "bad" }, "late");
  }
  if (isRunning(request, t)) return "running";
  return "waiting";
}

function isRunning(request, t) {
  if (page.state) return page.state.devices.some((d) => d.busy?.requests.includes(request.id));
  return page.recording.runsFor(request).some((run) => run.start <= t && run.end > t);
}

function latencyOf(request, t) {
  return request.end !== null && request.end <= t ? seconds(request.end - request.arrive) : seconds(t - request.arrive);
}

function choose(id, fromList = false) {
  page.chosen = timeline.chosen = id;
  render();
  if (fromList) $("detail-title").focus();
  else $("told").textContent = `Request ${shortId(id)} is shown below.`;
}

function drawChosen(t) {
  const request = page.recording.requests.get(page.chosen);
  if (!request) return fill($("detail"), [element("p", { className: "muted" }, "This request is no longer remembered.")]);
  const made = element("div", {}, ...drawRequest(page.recording, request, page.isLive ? t : Infinity));
  // What is the same stays: a keyboard's place in it would be lost.
  if (made.innerHTML !== $("detail").innerHTML) fill($("detail"), [...made.childNodes]);
}

// ---------------------------------------------------------------- small things

function table(target, heads, rows, none) {
  if (!rows.length) rows = [element("tr", {}, element("td", { colSpan: heads.length, className: "muted" }, none))];
  const numeric = (i) => i > 0 && typeof rows[0]?.cells[i]?.textContent === "string" && rows[0].cells[i].classList.contains("number");
  const head = element("tr", {}, ...heads.map((name, i) => element("th", { scope: "col", className: numeric(i) ? "number" : "" }, name)));
  fill(target, [element("thead", {}, head), element("tbody", {}, ...rows)]);
}

function tr(cells) {
  return element("tr", {}, ...cells.map((cell) => element("td", { className: isNumeric(cell) ? "number" : "" }, cell)));
}

function isNumeric(cell) {
  return typeof cell === "number" || (typeof cell === "string" && /^-?[\d.]+( s|%)?$|^-$/.test(cell));
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

function seconds(value) {
  if (value === null || value === undefined) return "-";
  return value >= 100 ? `${value.toFixed(0)} s` : value >= 1 ? `${value.toFixed(1)} s` : `${value.toFixed(2)} s`;
}

function ahead(value) {
  return value >= 0 ? `in ${seconds(value)}` : `${seconds(-value)} ago`;
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

$("file").addEventListener("change", () => $("file").files[0] && openFile($("file").files[0]));
$("live").addEventListener("click", () => {
  $("file").value = "";
  goLive();
});
$("fit").addEventListener("click", () => {
  $("follow").checked = false;
  timeline.fit();
});
$("zoom-in").addEventListener("click", () => timeline.zoom(0.7));
$("zoom-out").addEventListener("click", () => timeline.zoom(1.4));
$("follow").addEventListener("change", render);
$("scrub").addEventListener("input", render);
$("find").addEventListener("input", render);
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("trident-admin-key", $("key").value);
  $("key").value = "";
  goLive();
});

goLive();
