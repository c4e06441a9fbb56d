// The script author's view: edit a script's text, see its problems, hear it, and walk its branches by keys.
import { $, ask, element, hush, speak, token } from "./page.js";

const files = new Map(); // by name: the text on disk
const mine = new Map(); // by name: the text as edited here
const walked = new Map(); // by name: "question key" of each branch that was walked
let keys = []; // pressed so far; null: the call has not begun
let heard = 0; // turns that were spoken already
let asked = 0;
let timer;

const name = () => $("file").value;

async function open() {
  for (const { name, text } of await ask("GET", "/api/scripts")) {
    files.set(name, text);
    $("file").append(new Option(`${name}.toml`, name, false, name === "demo"));
  }
  load();
}

function load() {
  $("text").value = mine.get(name()) ?? files.get(name());
  stop();
  check();
}

function stop() {
  keys = null;
  heard = 0;
  hush();
  $("talk").replaceChildren();
  $("options").replaceChildren();
}

async function check() {
  const number = ++asked;
  const answer = await ask("POST", "/api/scripts/check", {
    name: name(), text: $("text").value, keys: keys ?? [], first_name: $("hear-name").value, metadata: { company: $("hear-company").value },
  });
  if (number === asked) draw(answer);
}

function draw({ problems, ...script }) {
  $("problems").replaceChildren(problems.length
    ? element("ul", {}, ...problems.map(({ key, message }) => element("li", {}, ...(key ? [element("code", { textContent: key }), " "] : []), message)))
    : element("p", { className: "fine", textContent: "No problems: this script can be used." }));
  const bad = problems.length > 0;
  for (const id of ["start", "machine", "save"]) $(id).disabled = bad;
  $("back").disabled = bad || !keys?.length;
  if (bad) return stop();
  $("machine").onclick = () => {
    stop();
    talk(script.machine.length ? script.machine : ["(the call hangs up)"], script.language, true);
  };
  if (keys === null) return branches(script.branches);
  $("talk").replaceChildren();
  script.turns.forEach((turn, index) => {
    if (index) walkedHere(`${script.turns[index - 1].at} ${keys[index - 1]}`);
    if (index) $("talk").append(element("p", { className: "mine", textContent: keys[index - 1] ? `pressed ${keys[index - 1]}` : "silence" }));
    talk(turn.says, script.language, index >= heard);
    if (turn.learned) note(`learned: ${turn.learned}`);
    if (turn.opts_out) note("this number is never called again");
    if (!turn.at) note("the call ends");
  });
  branches(script.branches);
  heard = script.turns.length;
  const { options } = script.turns.at(-1);
  $("options").replaceChildren(...options.map(({ key, means }) => {
    const button = element("button", { type: "button", textContent: key ? `${key}: ${means}` : "silence" });
    button.onclick = () => press(key);
    return button;
  }));
  $("talk").scrollTop = $("talk").scrollHeight;
}

const note = (text) => $("talk").append(element("p", { className: "note", textContent: text }));

function talk(texts, language, aloud) {
  for (const text of texts) {
    $("talk").append(element("p", { textContent: text }));
    if (aloud) speak(text, language);
  }
}

function branches(all) {
  const seen = walked.get(name()) ?? new Set();
  const each = all.map(({ question, key, means }) => [seen.has(`${question} ${key}`), `${question}, ${key}: ${means}`]);
  $("walked").textContent = `${each.filter(([done]) => done).length} of ${each.length}`;
  $("branches").replaceChildren(...each.map(([done, text]) => element("li", { className: done ? "walked" : "", textContent: `${done ? "✓" : "·"} ${text}` })));
}

const walkedHere = (branch) => walked.set(name(), (walked.get(name()) ?? new Set()).add(branch));

function press(key) {
  keys.push(key);
  $("options").replaceChildren();
  hush();
  check().then(() => $("options").querySelector("button")?.focus());
}

addEventListener("keydown", (event) => {
  if ($("script").hidden || event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  [...$("options").children].find((button) => button.textContent.startsWith(`${event.key}:`))?.click();
});

$("file").onchange = load;
$("text").oninput = () => {
  mine.set(name(), $("text").value);
  clearTimeout(timer);
  timer = setTimeout(check, 150);
};
$("hear-name").oninput = $("hear-company").oninput = () => { heard = 1e9; check(); };
$("start").onclick = () => { stop(); keys = []; check(); };
$("back").onclick = () => { hush(); keys.pop(); heard = keys.length + 1; check(); };
$("undo").onclick = () => { mine.delete(name()); load(); };
$("copy").onclick = async () => {
  await navigator.clipboard.writeText($("text").value);
  $("script-said").textContent = `Copied ${name()}.toml. Nothing on disk was changed.`;
};
$("save").onclick = async () => {
  try {
    await ask("PUT", "/api/scripts", { name: name(), text: $("text").value });
    files.set(name(), $("text").value);
    mine.delete(name());
    $("script-said").textContent = `Saved ${name()}.toml. The function starts again with it.`;
  } catch (error) {
    $("script-said").textContent = error.message;
  }
};

if (token) open();
