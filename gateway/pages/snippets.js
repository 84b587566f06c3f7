// The curl and SDK lines that do what the form asks for. Pure: a wish in, text out.

// What takes the server's JSON apart, for a shell with nothing but Python.
const READS = "import sys,json,base64; answer=json.load(sys.stdin); ";
const SAVES_ONE = `sys.stdout.buffer.write(base64.b64decode(answer["data"][0]["b64_json"]))' > picture.png`;
const SAVES_ALL = `[open(f"picture-{i}.png","wb").write(base64.b64decode(one["b64_json"])) for i,one in enumerate(answer["data"])]'`;
const PRINTS_ID = `print(answer["id"])'`;

// A wish: {isVideo, model, prompt, size, n, frames, seed, steps}; what is not set is undefined.
export function bodyOf(wish) {
  const extras = { seed: wish.seed, num_inference_steps: wish.steps };
  const common = { model: wish.model, prompt: wish.prompt, size: wish.size };
  const own = wish.isVideo ? { frames: wish.frames } : { n: wish.n > 1 ? wish.n : undefined };
  return withoutBlanks({ ...common, ...own, ...extras });
}

export function curlOf(wish, origin, needsKey) {
  const key = needsKey ? `  -H "Authorization: Bearer $TRIDENT_API_KEY" \\\n` : "";
  const post = (path) =>
    `curl -s ${origin}${path} \\\n  -H 'Content-Type: application/json' \\\n${key}  -d ${quoted(JSON.stringify(bodyOf(wish)))} \\\n  | python3 -c '${READS}`;
  if (!wish.isVideo) return `${post("/v1/images/generations")}${wish.n > 1 ? SAVES_ALL : SAVES_ONE}`;
  const auth = needsKey ? ` -H "Authorization: Bearer $TRIDENT_API_KEY"` : "";
  return [
    `video=$(${post("/v1/videos")}${PRINTS_ID})`,
    `while curl -s ${origin}/v1/videos/$video${auth} | grep -qE '"status": ?"(queued|in_progress)"'; do sleep 1; done`,
    `curl -s ${origin}/v1/videos/$video/content${auth} > clip.mp4`,
  ].join("\n");
}

export function pythonOf(wish, origin, needsKey) {
  const { seed, num_inference_steps, frames, ...named } = bodyOf(wish);
  const extra = withoutBlanks({ seed, num_inference_steps, frames });
  const lines = Object.entries(named).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${JSON.stringify(extra)},`);
  const key = needsKey ? `os.environ["TRIDENT_API_KEY"]` : `"none"`;
  const imports = ["base64", ...(needsKey ? ["os"] : [])].filter((name) => name !== "base64" || !wish.isVideo);
  const head = [...imports.map((name) => `import ${name}`), "from openai import OpenAI", "", `client = OpenAI(base_url="${origin}/v1", api_key=${key})`];
  const body = wish.isVideo
    ? ["video = client.videos.create_and_poll(", ...lines, ")", `client.videos.download_content(video.id).write_to_file("clip.mp4")`]
    : [
        "answer = client.images.generate(", ...lines, ")",
        "for number, item in enumerate(answer.data):",
        `    with open(f"picture-{number}.png", "wb") as file:`,
        "        file.write(base64.b64decode(item.b64_json))",
      ];
  return [...head, ...body].join("\n");
}

function quoted(text) {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

function withoutBlanks(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined && value !== ""));
}
