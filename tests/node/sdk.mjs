// The official Node SDK drives every call against a live server: make test-node URL=...
// The server must serve the models that ship, `shapes` and `motion`.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI, { toFile } from "openai";

const baseURL = process.env.URL ?? "http://127.0.0.1:8000/v1";
const client = new OpenAI({ baseURL, apiKey: process.env.KEY ?? "none", maxRetries: 0 });
const PNG = Buffer.from([0x89, 0x50, 0x4e, 0x47]);
const bytesOf = (text) => Buffer.from(text, "base64");
let circle;

async function finished(video) {
  while (video.status === "queued" || video.status === "in_progress") {
    await new Promise((resolve) => setTimeout(resolve, 200));
    video = await client.videos.retrieve(video.id);
  }
  return video;
}

test("models are listed and found", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes("shapes") && ids.includes("motion"));
  assert.equal((await client.models.retrieve("shapes")).object, "model");
});

test("a picture is generated", async () => {
  const answer = await client.images.generate({ model: "shapes", prompt: "a red circle", seed: 5 });
  circle = bytesOf(answer.data[0].b64_json);
  assert.deepEqual(circle.subarray(0, 4), PNG);
  assert.equal(answer.seed, 5);
});

test("a stream ends with the same bytes", async () => {
  const stream = await client.images.generate({
    model: "shapes", prompt: "a red circle", seed: 5, stream: true, partial_images: 2,
  });
  let last;
  for await (const event of stream) last = event;
  assert.equal(last.type, "image_generation.completed");
  assert.deepEqual(bytesOf(last.b64_json), circle);
});

test("a picture is edited and varied", async () => {
  const image = await toFile(circle, "circle.png", { type: "image/png" });
  const edited = await client.images.edit({ model: "shapes", image, prompt: "a blue star" });
  assert.deepEqual(bytesOf(edited.data[0].b64_json).subarray(0, 4), PNG);
  const again = await toFile(circle, "circle.png", { type: "image/png" });
  const varied = await client.images.createVariation({ model: "shapes", image: again });
  assert.equal(varied.data.length, 1);
});

test("a video is made, looked at, remixed and deleted", async () => {
  const made = await finished(await client.videos.create({ model: "motion", prompt: "a red circle moves right" }));
  assert.equal(made.status, "completed");
  for (const variant of ["video", "thumbnail", "spritesheet"]) {
    const content = await client.videos.downloadContent(made.id, { variant });
    assert.ok((await content.arrayBuffer()).byteLength > 0);
  }
  const remixed = await client.videos.remix(made.id, { prompt: "a green star moves right" });
  assert.equal(remixed.remixed_from_video_id, made.id);
  assert.equal((await finished(remixed)).status, "completed");
  const listed = [];
  for await (const video of client.videos.list({ limit: 1 })) listed.push(video.id);
  assert.ok(listed.includes(made.id) && listed.includes(remixed.id));
  for (const id of [made.id, remixed.id]) assert.equal((await client.videos.delete(id)).deleted, true);
});

test("errors have their class, code and param", async () => {
  await assert.rejects(client.images.generate({ model: "dall-e-3", prompt: "x" }), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.deepEqual([error.code, error.param], ["model_not_found", "model"]);
    return typeof error.requestID === "string";
  });
  await assert.rejects(client.images.generate({ model: "shapes", prompt: "x", n: 99 }), OpenAI.BadRequestError);
});
