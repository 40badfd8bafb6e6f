// The page: choose a video, see the frames that are looked at, ask, and ask again. No library, nothing from elsewhere.

const $ = (id) => document.getElementById(id);
const STAGES = ["decode", "preprocess", "encode", "prefill", "generate"];

const state = {
  key: "", // kept in memory only
  model: null,
  file: null, // the server's id of the video
  upload: null, // the request that is sending one
  sheets: 0, // the newest request for frames; older answers are thrown away
  asking: null, // the AbortController of a question
};

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function headers(more = {}) {
  return state.key ? { ...more, Authorization: `Bearer ${state.key}` } : more;
}

async function refusal(response) {
  let message = `The server answered with status ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: the status has to do */ }
  return new Refused(response.status, message);
}

async function call(path, options = {}) {
  const response = await fetch(path, { ...options, headers: headers(options.headers) });
  if (!response.ok) throw await refusal(response);
  return response;
}

function post(path, body, signal) {
  return call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });
}

function tell(error) {
  if (error.name === "AbortError") return;
  if (error.status === 401) $("key-form").hidden = false;
  $("fault").textContent = error instanceof TypeError ? "The server cannot be reached." : sentence(error.message);
  $("fault").hidden = false;
}

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

function clock(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
  const tenths = Math.floor((seconds - whole) * 10);
  return `${whole >= 3600 ? `${Math.floor(whole / 3600)}:` : ""}${parts.join(":")}.${tenths}`;
}

// --- the server ------------------------------------------------------------------------------------------------------

async function meet() {
  const { data } = await (await call("/v1/models")).json();
  state.model = data[0].id;
  $("served").textContent = `${data[0].id} with the encoder ${data[0].liteframe.encoder}, LiteFrame ${data[0].liteframe.version}`;
  $("frames").max = data[0].liteframe.max_frames;
  $("key-form").hidden = true;
  $("fault").hidden = true;
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = $("key").value;
  meet().catch(tell);
});

// --- the video -------------------------------------------------------------------------------------------------------

function forget(isLeaving = false) {
  state.upload?.abort();
  state.asking?.abort();
  if (state.file) fetch(`/v1/files/${state.file}`, { method: "DELETE", headers: headers(), keepalive: isLeaving }).catch(() => {});
  state.file = null;
}

function take(file) {
  forget();
  $("fault").hidden = true;
  $("ask").disabled = true;
  $("sheet").replaceChildren();
  for (const id of ["frames-row", "line"]) $(id).hidden = true;
  show(file);
  send(file).then(async (stored) => {
    state.file = stored.id;
    $("facts").textContent = facts(stored);
    $("said").textContent = `${stored.filename} is ready.`;
    $("ask").disabled = false;
    await look();
  }).catch((error) => {
    if (error.name === "AbortError") return;
    $("facts").textContent = "";
    tell(error);
  });
}

function show(file) {
  const preview = $("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(file);
  preview.hidden = false;
  $("drop").parentElement.classList.add("has-video");
  // What this browser cannot play, the server may still read.
  preview.onerror = () => {
    preview.hidden = true;
    $("drop").parentElement.classList.remove("has-video");
  };
}

function send(file) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much has been sent
    const form = new FormData();
    form.append("purpose", "user_data");
    form.append("file", file);
    state.upload = request;
    request.open("POST", "/v1/files");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.responseType = "json";
    request.upload.onprogress = ({ loaded, total }) => {
      $("facts").textContent = `Sending ${file.name}: ${Math.floor((100 * loaded) / total)} %`;
    };
    request.onload = () => request.status === 200
      ? resolve(request.response)
      : reject(new Refused(request.status, request.response?.error?.message ?? `The server answered with status ${request.status}.`));
    request.onerror = () => reject(new TypeError());
    request.onabort = () => reject(new DOMException("", "AbortError"));
    request.send(form);
  });
}

function facts(stored) {
  const { width, height, duration_seconds: duration, codec, faults } = stored.liteframe;
  const parts = [stored.filename, `${width} × ${height}`, codec];
  if (duration !== null) parts.push(clock(duration));
  return [parts.join(", "), ...faults.map((fault) => fault.text)].join(". ");
}

const options = () => ({ num_frames: Math.max(1, Math.min(Number($("frames").max), Math.floor(Number($("frames").value)) || 32)) });

async function look() {
  const number = ++state.sheets;
  $("frames-row").hidden = false;
  $("sheet-words").textContent = "Looking ...";
  const sheet = await (await post(`/v1/files/${state.file}/frames`, options())).json();
  if (number !== state.sheets) return;
  draw(sheet);
}

function draw({ frames, num_frames: count, duration_seconds: duration }) {
  $("sheet-words").textContent = frames.length < count ? `${frames.length} of the ${count} are shown` : `${count} exist at these times`;
  if (count === options().num_frames && frames.length === count) $("sheet-words").textContent = "";
  $("line-start").textContent = clock(0);
  $("line-end").textContent = clock(duration);
  $("line").hidden = false;
  const marks = frames.map(({ seconds }) => {
    const mark = document.createElement("i");
    mark.style.left = `${(100 * seconds) / Math.max(duration, 1e-9)}%`;
    return mark;
  });
  $("marks").replaceChildren(...marks);
  $("sheet").replaceChildren(...frames.map(({ seconds, image }, index) => thumbnail(seconds, image, index, marks[index])));
}

function thumbnail(seconds, image, index, mark) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const picture = document.createElement("img");
  picture.src = image;
  picture.alt = `Frame ${index + 1}, at`;
  button.type = "button";
  button.tabIndex = index === 0 ? 0 : -1; // one stop for Tab; arrow keys go on from there
  button.append(picture, clock(seconds));
  button.addEventListener("click", () => { if (!$("preview").hidden) $("preview").currentTime = seconds; });
  for (const name of ["focus", "mouseenter"]) button.addEventListener(name, () => mark.classList.add("is-on"));
  for (const name of ["blur", "mouseleave"]) button.addEventListener(name, () => mark.classList.remove("is-on"));
  item.append(button);
  return item;
}

$("sheet").addEventListener("keydown", (event) => {
  const buttons = [...$("sheet").querySelectorAll("button")];
  const here = buttons.indexOf(document.activeElement);
  const columns = buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -here, End: buttons.length - 1 - here }[event.key];
  const next = buttons[here + step];
  if (step === undefined || here < 0 || !next) return;
  event.preventDefault();
  buttons[here].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

$("file").addEventListener("change", () => { if ($("file").files.length) take($("file").files[0]); });
$("frames").addEventListener("change", () => { if (state.file) look().catch(tell); });
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); $("drop").classList.add("is-over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("is-over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("is-over");
  const [file] = event.dataTransfer.files;
  if (file) take(file);
});
addEventListener("pagehide", () => forget(true));

// --- the question ----------------------------------------------------------------------------------------------------

$("ask-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.file && !state.asking) ask($("question").value.trim());
});
$("stop").addEventListener("click", () => state.asking?.abort());

async function ask(question) {
  const article = $("answer-template").content.cloneNode(true).querySelector("article");
  const text = article.querySelector(".text");
  article.querySelector("h3").textContent = question;
  text.classList.add("is-coming");
  $("answers").prepend(article);
  $("fault").hidden = true;
  busy(new AbortController());
  try {
    const body = {
      model: state.model,
      messages: [{ role: "user", content: [{ type: "file", file: { file_id: state.file } }, { type: "text", text: question }] }],
      stream: true,
      liteframe: { ...options(), progress: true },
    };
    const response = await post("/v1/chat/completions", body, state.asking.signal);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Refused(0, chunk.error.message);
      if (chunk.liteframe?.progress) watching(chunk.liteframe.progress);
      text.textContent += chunk.choices[0]?.delta.content ?? "";
      if (chunk.liteframe?.timings) cost(article, chunk.liteframe, chunk.choices[0].finish_reason);
    }
    $("said").textContent = `Answer: ${text.textContent || "nothing"}`; // once, and not word by word
  } catch (error) {
    const isStopped = error.name === "AbortError";
    text.classList.add("is-fault");
    text.textContent += isStopped ? `${text.textContent && " "}(stopped)` : sentence(error instanceof TypeError ? "The server cannot be reached" : error.message);
    $("said").textContent = isStopped ? "Stopped." : text.textContent;
    if (error.status === 401) $("key-form").hidden = false;
  } finally {
    text.classList.remove("is-coming");
    busy(null);
    $("question").select();
  }
}

function busy(asking) {
  const hadFocus = [$("ask"), $("stop")].includes(document.activeElement);
  state.asking = asking;
  $("ask").hidden = Boolean(asking);
  $("work").hidden = $("stop").hidden = !asking;
  $("progress").removeAttribute("value");
  $("work-words").textContent = "Waiting for its turn";
  if (hadFocus) (asking ? $("stop") : $("question")).focus(); // the button that had it is gone
}

function watching({ done, total }) {
  $("progress").max = total;
  $("progress").value = done;
  $("work-words").textContent = `${done} of ${total} frames seen`;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ") && block !== "data: [DONE]") yield JSON.parse(block.slice(6));
    }
  }
}

function cost(article, spent, reason) {
  const all = Math.max(STAGES.reduce((sum, stage) => sum + spent.timings[stage], 0), 1e-9);
  const bar = article.querySelector(".bar");
  const list = article.querySelector("dl");
  for (const stage of STAGES) {
    const part = document.createElement("span");
    part.className = stage;
    part.style.flexGrow = spent.timings[stage] / all;
    bar.append(part);
    const row = document.createElement("div");
    const name = document.createElement("dt");
    const value = document.createElement("dd");
    name.className = stage;
    name.textContent = stage;
    value.textContent = `${spent.timings[stage].toFixed(2)} s`;
    row.append(name, value);
    list.append(row);
  }
  const words = [`${spent.num_frames} frames, ${spent.num_visual_tokens} visual tokens, ${spent.wall_seconds.toFixed(2)} s in all`];
  if (spent.video_reused) words.push("the video was encoded before");
  if (reason === "length") words.push("the answer was cut at its greatest length");
  article.querySelector(".small").textContent = sentence([...words, ...spent.warnings].join("; "));
  article.querySelector(".cost").hidden = false;
}

meet().catch(tell);
