// The playground: a form, what the server says meanwhile, and what comes of it. It calls the same
// routes as any client, so what works here works from a program.

import { element, fill } from "/static/dom.js";
import { StreamError, bearer, errorOf, events } from "/static/sse.js";
import { bodyOf, curlOf, pythonOf } from "/static/snippets.js";
import { StageRows, duration } from "/static/stages.js";

const PARTIAL_IMAGES = 3;
const JOB_HEADER = "x-job-id";
const JOB_POLL_MS = 250;
const VIDEO_POLL_MS = 500;
const SIZES = [64, 96, 128, 192, 256, 384, 512, 768, 1024];
const EXAMPLES = {
  image: ["a large red circle on a blue background", "a green star left of a yellow square", "a small orange heart at the top right on a black background"],
  video: ["a red circle moving right on a blue background", "a green star growing on a white background", "a small yellow diamond moving up on a purple background"],
};

const $ = (id) => document.getElementById(id);
const page = { models: [], running: null, needsKey: false, stages: new StageRows($("stages")) };

function key() {
  return sessionStorage.getItem("trident-api-key") ?? "";
}

// ---------------------------------------------------------------- the form

async function loadModels() {
  const response = await fetch("/v1/models", { headers: bearer(key()) });
  if (response.status === 401 || response.status === 403) {
    page.needsKey = true;
    $("key-row").hidden = false;
    return showError(key() ? "This key is not accepted." : "This server asks for an API key.");
  }
  if (!response.ok) return showError((await errorOf(response)).message);
  showError(null);
  page.models = (await response.json()).data;
  fill($("model"), page.models.map((model) => element("option", { value: model.id }, `${model.id} (${model.modality})`)));
  chooseModel();
}

function chosenModel() {
  return page.models.find((model) => model.id === $("model").value);
}

function chooseModel() {
  const model = chosenModel();
  if (!model) return;
  const isVideo = model.modality === "video";
  for (const part of document.querySelectorAll(".for-images")) part.hidden = isVideo;
  for (const part of document.querySelectorAll(".for-videos")) part.hidden = !isVideo;
  $("size").value = model.default_size;
  $("frames").max = model.max_frames;
  $("frames").value = "";
  $("frames").placeholder = model.default_frames ?? "";
  $("steps").max = model.max_steps;
  $("steps").placeholder = model.default_steps ?? "";
  $("go").textContent = isVideo ? "Film" : "Draw";
  $("about").textContent = model.description ?? "";
  const sizes = model.sizes ?? [model.default_size, ...SIZES.map((side) => `${side}x${side}`)];
  fill($("sizes"), [...new Set(sizes)].map((size) => element("option", { value: size })));
  const examples = EXAMPLES[model.modality] ?? [];
  fill($("examples"), examples.map((text) => element("button", { type: "button", onclick: () => setPrompt(text) }, text)));
  if (!$("prompt").value || Object.values(EXAMPLES).flat().includes($("prompt").value)) setPrompt(examples[0] ?? "");
}

function setPrompt(text) {
  $("prompt").value = text;
  showCode();
}

function wish() {
  const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    isVideo: chosenModel()?.modality === "video",
    model: $("model").value,
    prompt: $("prompt").value,
    size: $("size").value || undefined,
    n: number("count") ?? 1,
    frames: number("frames"),
    seed: number("seed"),
    steps: number("steps"),
  };
}

function showCode() {
  const asked = wish();
  $("curl").textContent = curlOf(asked, location.origin, page.needsKey);
  $("python").textContent = pythonOf(asked, location.origin, page.needsKey);
}

// ---------------------------------------------------------------- asking

async function ask(event) {
  event.preventDefault();
  const asked = wish();
  const stop = new AbortController();
  page.running = stop;
  setBusy(true);
  showError(null);
  fill($("outputs"), []);
  page.stages.clear();
  bringIntoView($("result-title"));
  const began = performance.now();
  try {
    await (asked.isVideo ? film(asked, stop.signal) : draw(asked, stop.signal));
    say(`Done in ${duration((performance.now() - began) / 1000)}.`, null);
  } catch (error) {
    if (stop.signal.aborted) say("Cancelled.", null);
    else {
      say("It did not work.", null);
      showError(error instanceof StreamError ? error.message : `The server does not answer. Does it still run? (${error.message})`);
    }
  } finally {
    page.running = null;
    setBusy(false);
  }
}

function post(body, signal) {
  const headers = { "content-type": "application/json", ...bearer(key()) };
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

// Every picture is streamed, so that it can be watched.
async function draw(asked, signal) {
  say("Waiting for a device ...", 0);
  const body = { ...bodyOf(asked), stream: true, partial_images: PARTIAL_IMAGES };
  const watch = watchJob();
  const onHeaders = (headers) => watch.start(headers.get(JOB_HEADER));
  const shown = [];
  const show = (part, text, isPartial) => {
    shown[part.image_index ?? 0] = picture(part, text, isPartial);
    fill($("outputs"), shown.filter(Boolean));
  };
  try {
    for await (const { data } of events("/v1/images/generations", { ...post(body, signal), onHeaders })) {
      if (data === "[DONE]") break;
      const part = JSON.parse(data);
      if (part.error) throw new StreamError(part.error.message, 500);
      if (part.type?.endsWith("partial_image")) show(part, `partial image ${part.partial_image_index + 1} of ${PARTIAL_IMAGES}`, true);
      if (part.type?.endsWith("completed")) show(part, caption(part.seed), false);
    }
  } finally {
    await watch.end();
  }
}

async function film(asked, signal) {
  say("Waiting for a device ...", 0);
  const created = await fetch("/v1/videos", post(bodyOf(asked), signal));
  if (!created.ok) throw await errorOf(created);
  let video = await created.json();
  const remove = () => fetch(`/v1/videos/${video.id}`, { method: "DELETE", headers: bearer(key()) });
  signal.addEventListener("abort", remove, { once: true });
  while (video.status === "queued" || video.status === "in_progress") {
    const response = await fetch(`/v1/videos/${video.id}`, { headers: bearer(key()), signal });
    if (!response.ok) throw await errorOf(response);
    video = await response.json();
    const askAgainMs = Number(response.headers.get("openai-poll-after-ms")) || VIDEO_POLL_MS;
    const isTold = await showJob(video.id, true);
    if (!isTold) say(`${video.status}: ${video.progress} %`, video.progress / 100);
    await pause(Math.min(VIDEO_POLL_MS, askAgainMs), signal);
  }
  if (video.status !== "completed") throw new StreamError(video.error?.message ?? `The video is ${video.status}.`, 500);
  const content = await fetch(`/v1/videos/${video.id}/content`, { headers: bearer(key()), signal });
  if (!content.ok) throw await errorOf(content);
  const url = URL.createObjectURL(await content.blob());
  const player = element("video", { src: url, controls: true, loop: true, autoplay: true, muted: true, playsInline: true });
  fill($("outputs"), [figure(player, `${caption(video.seed)}, ${video.size}, ${video.seconds} s`)]);
  await showJob(video.id);
}

function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(new DOMException("aborted", "AbortError"))), { once: true });
  });
}

// ---------------------------------------------------------------- the job meanwhile

function watchJob() {
  let id = null;
  let timer = null;
  return {
    start(job) {
      id = job;
      if (id) timer = setInterval(() => showJob(id, true), JOB_POLL_MS);
    },
    async end() {
      clearInterval(timer);
      if (id) await showJob(id);
    },
  };
}

// Returns whether there was something to show: a server of another make has no /v1/jobs.
async function showJob(id, withStatus = false) {
  if (!id) return false;
  const response = await fetch(`/v1/jobs/${encodeURIComponent(id)}`, { headers: bearer(key()) }).catch(() => null);
  if (!response?.ok) return false;
  const job = await response.json();
  if (withStatus && page.running) sayOf(job);
  page.stages.draw(job, page.running !== null);
  return true;
}

function sayOf(job) {
  const left = job.eta ? job.eta.latest_at - Date.now() / 1000 : null;
  const eta = left === null || left <= 0 ? "" : `, at most ${left < 10 ? left.toFixed(1) : left.toFixed(0)} s left`;
  if (job.status === "queued") say(`In the queue${job.queue ? ` at place ${job.queue.position}` : ""}${eta}`, 0);
  else if (job.progress >= 100) say("Decoding", 1);
  else say(`Denoising: ${job.progress} %${eta}`, job.progress / 100);
}

// ---------------------------------------------------------------- showing

function picture(part, text, isPartial) {
  const shown = element("img", { src: `data:image/${part.output_format ?? "png"};base64,${part.b64_json}`, alt: $("prompt").value });
  const made = figure(shown, text);
  if (isPartial) made.className = "partial";
  return made;
}

function figure(content, text) {
  return element("figure", {}, content, element("figcaption", {}, text));
}

function caption(seed) {
  return seed === undefined || seed === null || Number.isNaN(seed) ? "" : `seed ${seed}`;
}

// On a phone what comes of it is below the form.
function bringIntoView(heading) {
  const isVisible = heading.getBoundingClientRect().bottom < innerHeight;
  if (!isVisible) heading.parentElement.scrollIntoView();
}

function say(text, share) {
  $("status").textContent = text;
  $("progress").hidden = share === null;
  if (share !== null) $("progress").value = share;
}

function showError(message) {
  $("error").hidden = !message;
  $("error").textContent = message ?? "";
}

function setBusy(isBusy) {
  $("go").disabled = isBusy;
  $("stop").disabled = !isBusy;
}

async function copy(button) {
  const text = $(button.dataset.copies).textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($(button.dataset.copies)); // no permission: it is selected, so that Ctrl+C does it
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

$("ask").addEventListener("submit", ask);
$("ask").addEventListener("input", showCode);
$("model").addEventListener("change", () => (chooseModel(), showCode()));
$("stop").addEventListener("click", () => page.running?.abort());
$("key").addEventListener("change", () => {
  sessionStorage.setItem("trident-api-key", $("key").value);
  loadModels();
});
for (const button of document.querySelectorAll(".copy")) button.addEventListener("click", () => copy(button));

loadModels().then(showCode);
