"use strict";
// One page, one server, nothing kept: the image and the token live in this tab's memory alone.

const by = (id) => document.getElementById(id);
const LARGEST_SIDE = 2048; // pixels of a photo that is made smaller because its file is above the server's limit
const NO_WORD = "(no word)"; // an answer that ends before it begins
let token = "";
let model = null;
let asked = 0;
let chosen = null; // the file that a question in words is about
let wondered = 0;

function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  return fetch(path, { ...options, headers, credentials: "omit", redirect: "error" });
}

async function start() {
  let answer;
  try {
    answer = await ask("/v1/model");
  } catch {
    by("about").textContent = "The server does not answer. Is it still running?";
    return;
  }
  if (answer.status === 401) {
    by("about").textContent = token ? "That is not the token." : "";
    by("door").hidden = false;
    by("token").select();
    by("token").focus();
    return;
  }
  const said = await answer.json();
  if (!answer.ok) {
    by("about").textContent = said.error;
    return;
  }
  model = said;
  by("door").hidden = true;
  by("token").value = "";
  describe();
}

function describe() {
  const what = model.modality === "audio" ? "a sound" : "an image";
  const some = model.classes.slice(0, 4).join(", ") + (model.classes.length > 4 ? ", ..." : "");
  by("about").textContent = `It knows ${model.classes.length} classes: ${some}`;
  by("give").textContent = `Choose ${what}`;
  by("hint").textContent = `Drop ${what} here, paste it, or choose a file: ${model.formats}.`;
  by("file").accept = model.modality === "audio" ? ".wav,.flac,audio/wav,audio/flac" : "image/png,image/jpeg,image/webp";
  if (model.modality === "audio") by("photograph").remove();
  by("plain").textContent = model.in_plain_words;
  by("statement").textContent = model.privacy;
  by("more").hidden = Boolean(token); // a link cannot bring the token
  by("beside").hidden = !model.has_zero_shot;
  by("columns").classList.toggle("two", model.has_zero_shot);
  if (model.in_words) offer_words(what);
  by("desk").hidden = false;
}

function offer_words(what) {
  by("question").placeholder = model.in_words.question;
  by("question").maxLength = model.in_words.characters;
  by("thinking").textContent = `Choose ${what} first. Without a question it is asked: ${model.in_words.question}`;
  by("words").hidden = false;
  if (model.classes.length) return;
  by("about").textContent = `It answers questions about ${what} in words.`;
  by("taken").remove();
}

// A phone stores a photo lying on its side with a note which way is up; and photos can be larger than the limit.
async function made_ready(file, most = model.body_bytes) {
  if (model.modality === "audio") return file;
  let stored, shown;
  try {
    [stored, shown] = await Promise.all([createImageBitmap(file, { imageOrientation: "none" }), createImageBitmap(file)]);
  } catch {
    return file; // the server says what it takes
  }
  const is_upright = stored.width === shown.width && stored.height === shown.height;
  if (is_upright && file.size <= most) return file;
  const scale = file.size <= most ? 1 : Math.min(1, LARGEST_SIDE / Math.max(shown.width, shown.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(shown.width * scale));
  canvas.height = Math.max(1, Math.round(shown.height * scale));
  canvas.getContext("2d").drawImage(shown, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(blob || file), "image/jpeg", 0.95));
}

async function predict(file) {
  if (!model || !file) return;
  const mine = ++asked;
  preview(file);
  forget_answer(file);
  if (!model.classes.length) {
    wonder();
    return;
  }
  by("problem").hidden = true;
  by("waiting").hidden = false;
  by("waiting").textContent = "Looking at it.";
  by("waiting").className = "";
  by("columns").classList.add("is-waiting");
  let said;
  try {
    const body = await made_ready(file);
    const answer = await ask(`/v1/predict?top=5${model.has_zero_shot ? "&compare=zero_shot" : ""}`, { method: "POST", body });
    said = await answer.json();
  } catch {
    said = { error: "The server does not answer. Is it still running?" };
  }
  if (mine !== asked) return; // another one was chosen in the meantime
  by("columns").classList.remove("is-waiting");
  if (said.error) {
    by("columns").hidden = by("time").hidden = by("waiting").hidden = true;
    by("problem").textContent = said.error;
    by("problem").hidden = false;
    return;
  }
  draw(by("trained"), said.top);
  if (said.zero_shot) draw(by("zero_shot"), said.zero_shot.top);
  by("columns").hidden = by("time").hidden = false;
  by("waiting").textContent = `${said.label}, ${percent(said.probability)}`;
  by("waiting").className = "is-answer";
  if (matchMedia("(max-width: 819px)").matches) by("found").scrollIntoView();
  by("time").textContent = `Answered in ${Math.max(1, Math.round(said.milliseconds))} ms by the model ${said.model}. It can name only what it knows.`;
}

// An answer is about one file: another one makes it stale.
function forget_answer(file) {
  chosen = file;
  wondered++;
  tell("Nothing was asked about it yet.");
}

function tell(text, is_answer = false) {
  by("thinking").textContent = text;
  by("thinking").className = is_answer ? "is-answer" : "";
  by("thinking").hidden = false;
  by("unclear").hidden = by("said_beside").hidden = true;
}

async function wonder() {
  if (!chosen) return;
  const mine = ++wondered;
  tell("Thinking of an answer, word by word.");
  let said;
  try {
    const file = await in_base64(await made_ready(chosen, 0.7 * model.body_bytes)); // which makes it longer by a third
    const body = { [model.modality === "audio" ? "sound" : "image"]: file, question: by("question").value.trim() };
    if (model.has_zero_shot) body.compare = "zero_shot";
    const answer = await ask("/v1/answer", { method: "POST", body: JSON.stringify(body) });
    said = await answer.json();
  } catch {
    said = { error: "The server does not answer. Is it still running?" };
  }
  if (mine !== wondered) return; // another file, or another question
  if (said.error) {
    by("thinking").hidden = true;
    by("unclear").textContent = said.error;
    by("unclear").hidden = false;
    return;
  }
  tell((said.answer || NO_WORD) + (said.is_complete ? "" : " (cut off)"), true);
  by("said_before").textContent = said.zero_shot || NO_WORD;
  by("said_beside").hidden = !model.has_zero_shot;
}

async function in_base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  return btoa(text);
}

function preview(file) {
  const picture = by("picture");
  picture.hidden = model.modality === "audio";
  by("hint").textContent = file.name && model.modality === "audio" ? file.name : "Drop, paste or choose another one.";
  if (picture.hidden) return;
  const address = URL.createObjectURL(file);
  picture.onload = picture.onerror = () => URL.revokeObjectURL(address);
  picture.src = address;
}

// Without an icon of the page's own a browser asks for one that the security policy forbids.
function bring_icon() {
  const bars = '<path d="M2 3h12v3H2zm0 5h8v3H2zm0 5h4v2H2z" fill="#1f5fbf"/>';
  const drawn = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" width="16" height="16">${bars}</svg>`;
  const link = document.createElement("link");
  link.rel = "icon";
  link.href = URL.createObjectURL(new Blob([drawn], { type: "image/svg+xml" }));
  document.head.append(link);
}

function percent(share) {
  return `${(100 * share).toFixed(1)} %`;
}

function draw(list, top) {
  list.replaceChildren(...top.map(({ label, probability }) => {
    const [item, name, number, track, bar] = ["li", "span", "span", "span", "span"].map((tag) => document.createElement(tag));
    name.className = "name";
    name.textContent = label;
    number.className = "number";
    number.textContent = percent(probability);
    track.className = "track";
    track.setAttribute("aria-hidden", "true");
    bar.style.width = `${100 * probability}%`;
    track.append(bar);
    item.append(name, number, track);
    return item;
  }));
}

by("door").addEventListener("submit", (event) => {
  event.preventDefault();
  token = by("token").value.trim();
  start();
});
by("asking").addEventListener("submit", (event) => {
  event.preventDefault();
  wonder();
});
for (const id of ["file", "camera"]) {
  by(id).addEventListener("change", (event) => {
    predict(event.target.files[0]);
    event.target.value = ""; // the same one may be chosen again
  });
}
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) predict(event.clipboardData.files[0]);
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    by("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    if (kind === "drop" || !event.relatedTarget) by("drop").classList.remove("over");
  });
}
document.addEventListener("drop", (event) => predict(event.dataTransfer.files[0]));
bring_icon();
start();
