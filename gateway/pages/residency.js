// The residency map: what lies on each device at a time, and what the placement wants there.

import { element, fill } from "/static/dom.js";
import { STAGES } from "/static/recording.js";

const CROWD = 24; // from here on stages are squares with a name on hover, and lists stay short

export function drawResidency(parent, recording, state, t) {
  parent.classList.toggle("crowd", recording.devices.length > CROWD);
  const live = new Map((state?.devices ?? []).map((device) => [device.id, device]));
  const wanted = recording.placementAt(t)?.stages ?? {};
  fill(parent, recording.devices.map((device) => box(recording, device, live.get(device.id), wanted[device.id], t)));
}

function box(recording, device, live, wanted, t) {
  const weights = recording.residentAt(device, t);
  const resident = inOrder(live ? live.resident : weights.map((w) => `${w.model}/${w.stage}`));
  const desired = inOrder(live?.desired ?? wanted ?? null);
  const isLost = live ? live.lost : recording.isLostAt(device, t);
  const used = live ? live.memory_bytes - live.free_bytes : weights.reduce((sum, w) => sum + w.bytes, 0);
  const share = device.memoryBytes > 0 ? Math.min(1, used / device.memoryBytes) : 0;
  const bar = element("i");
  bar.style.width = `${(100 * share).toFixed(1)}%`;
  const chips = [
    ...resident.map((stage) => chip(stage, desired && !desired.includes(stage) ? "spare" : "")),
    ...(desired ?? []).filter((stage) => !resident.includes(stage)).map((stage) => chip(stage, "wanted")),
  ];
  return element(
    "div",
    { className: `device${isLost ? " lost" : ""}`, title: `${device.id} on ${device.node}: ${gib(used)} of ${gib(device.memoryBytes)}` },
    element("strong", {}, device.id),
    isLost ? " lost" : "",
    element("span", { className: "muted used" }, ` ${gib(used)} of ${gib(device.memoryBytes)}`),
    element("div", { className: "memory" }, bar),
    ...(chips.length ? chips : [element("span", { className: "muted" }, "empty")]),
  );
}

// By model, then as a request goes through them.
function inOrder(stages) {
  const rank = (stage) => STAGES.indexOf(stage.slice(stage.lastIndexOf("/") + 1));
  const model = (stage) => stage.slice(0, stage.lastIndexOf("/"));
  return stages && [...stages].sort((a, b) => model(a).localeCompare(model(b)) || rank(a) - rank(b));
}

function chip(stage, kind) {
  const at = stage.lastIndexOf("/");
  const name = stage.slice(at + 1);
  const words = { spare: ", no longer wanted", wanted: ", wanted, not loaded", "": "" };
  return element("span", { className: `chip ${name} ${kind}`, title: `${stage}${words[kind]}` }, `${stage.slice(0, at)} ${name}`);
}

function gib(bytes) {
  return bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toFixed(1)} GiB` : `${(bytes / 2 ** 20).toFixed(0)} MiB`;
}
