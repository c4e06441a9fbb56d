// The telephone page: hears the sandbox's events, shows them, and asks it for what the person does.
export const token = new URLSearchParams(location.search).get("token") ?? "";
export const $ = (id) => document.getElementById(id);
const KEYS = [..."123456789*0#"];
const LIVE = ["queued", "ringing", "in-progress"];
const MOST = { rows: 60, lines: 400 };

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export async function ask(method, path, body, headers = {}) {
  const answer = await fetch(path, {
    method,
    headers: { "X-Sandbox-Token": token, "Content-Type": "application/json", ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error?.message ?? said.msg ?? said.message ?? `it answered ${answer.status}`);
  return said;
}

function complain(error) {
  $("alert").textContent = error.message;
  $("alert").hidden = false;
  setTimeout(() => ($("alert").hidden = true), 8000);
}

const attempt = (work) => work.catch(complain);

// -- sound ------------------------------------------------------------------------------------------------------------

const sound = { on: true, context: null, ringer: null };

export function speak(text, language) {
  if (!sound.on || !window.speechSynthesis) return;
  const words = new SpeechSynthesisUtterance(text);
  words.lang = language;
  words.rate = 1.1;
  speechSynthesis.speak(words);
}

export const hush = () => window.speechSynthesis?.cancel();

function tone(frequencies, seconds) {
  if (!sound.on || !sound.context) return;
  const gain = sound.context.createGain();
  gain.gain.value = 0.06;
  gain.connect(sound.context.destination);
  for (const frequency of frequencies) {
    const oscillator = sound.context.createOscillator();
    oscillator.frequency.value = frequency;
    oscillator.connect(gain);
    oscillator.start();
    oscillator.stop(sound.context.currentTime + seconds);
  }
}

function ringWhileNeeded() {
  const rings = [...phones.values()].filter((phone) => phone.status === "ringing");
  document.title = rings.length ? "Ringing! Sandbox" : "Sandbox: the telephone page";
  if (rings.length && !sound.ringer) {
    tone([440, 480], 1);
    sound.ringer = setInterval(() => tone([440, 480], 1), 2500);
  } else if (!rings.length) {
    clearInterval(sound.ringer);
    sound.ringer = null;
  }
}

// Browsers give a page its sound with the person's first click or key.
for (const kind of ["pointerdown", "keydown"]) {
  addEventListener(kind, () => (sound.context ??= new AudioContext()), { once: true });
}

$("sound").onclick = () => {
  sound.on = !sound.on;
  $("sound").textContent = sound.on ? "Sound on" : "Sound off";
  $("sound").ariaPressed = sound.on;
  if (!sound.on) hush();
};

// -- the phones -------------------------------------------------------------------------------------------------------

const phones = new Map(); // by number: card, status, sid
const names = new Map(); // by number
const users = new Map(); // by number: the user's id
let caller = "";
const STATES = {
  idle: "Waits for a call", queued: "Twilio dials it", ringing: "Ringing", "in-progress": "In a call",
  completed: "The call is over", busy: "The call ended: busy", "no-answer": "The call ended: not answered",
  failed: "The call failed", canceled: "The call was canceled",
};

const pretty = (number) => number.replace(/^\+1(\d{3})(\d{3})(\d{4})$/, "+1 $1 $2 $3");

function phoneOf(number) {
  if (phones.has(number)) return phones.get(number);
  const card = $("phone").content.cloneNode(true).firstElementChild;
  const phone = { number, card, status: "idle", sid: null };
  card.dataset.number = number;
  card.querySelector(".keys").ariaLabel = `Keypad of ${pretty(number)}`;
  card.querySelector(".words").ariaLabel = `Conversation with ${pretty(number)}`;
  for (const key of KEYS) {
    const button = element("button", { type: "button", textContent: key });
    button.onclick = () => press(phone, key);
    card.querySelector(".keys").append(button);
  }
  const say = card.querySelector(".say");
  say.words.ariaLabel = `Say to ${pretty(number)}`;
  say.onsubmit = (event) => {
    event.preventDefault();
    if (say.words.value.trim()) sayWords(phone, say.words.value.trim());
    say.reset();
  };
  say.querySelector(".mic").hidden = !Recognition;
  say.querySelector(".mic").onclick = () => listen(phone);
  for (const button of card.querySelectorAll("[data-do]")) button.onclick = () => act(phone, button.dataset.do);
  phones.set(number, phone);
  $("phones").prepend(card);
  $("no-phones").hidden = true;
  show(phone);
  return phone;
}

function act(phone, what, more = {}) {
  if (!["press", "say"].includes(what)) phone.card.focus();
  attempt(ask("POST", "/api/phone", { number: phone.number, do: what, ...more }));
}

function sayWords(phone, words) {
  hush();
  act(phone, "say", { words });
}

const Recognition = window.SpeechRecognition ?? window.webkitSpeechRecognition;

function listen(phone) {
  hush();
  const recognition = Object.assign(new Recognition(), { lang: phone.language ?? "en-US" });
  recognition.onresult = (event) => sayWords(phone, event.results[0][0].transcript);
  recognition.onerror = (event) => complain(new Error(`The browser did not hear you: ${event.error}`));
  recognition.start();
}

function press(phone, key) {
  const button = phone.card.querySelectorAll(".keys button")[KEYS.indexOf(key)];
  button.classList.add("down");
  setTimeout(() => button.classList.remove("down"), 150);
  const at = KEYS.indexOf(key);
  tone([[697, 770, 852, 941][Math.floor(at / 3)], [1209, 1336, 1477][at % 3]], 0.15);
  hush();
  act(phone, "press", { keys: key });
}

addEventListener("keydown", (event) => {
  if (!KEYS.includes(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea") || $("telephone").hidden) return;
  const here = document.activeElement?.closest?.(".phone")?.dataset.number;
  const talking = [...phones.values()].filter((phone) => phone.status === "in-progress" && !phone.machine);
  const phone = talking.find((each) => each.number === here) ?? talking.at(-1);
  if (phone) press(phone, event.key);
});

function show(phone) {
  const { card, status } = phone;
  const name = names.get(phone.number);
  const talks = status === "in-progress" && !phone.machine;
  card.dataset.status = status;
  card.ariaLabel = `Phone ${pretty(phone.number)}${name ? ` of ${name}` : ""}`;
  card.querySelector("h3").replaceChildren(name || "Phone", element("small", { textContent: pretty(phone.number) }));
  card.querySelector(".state").textContent = status === "ringing" ? `Ringing: call from ${pretty(caller)}` : talks || status !== "in-progress" ? STATES[status] : "Voice mail has the call";
  card.querySelector(".ring").hidden = status !== "ringing";
  for (const part of card.querySelectorAll(".keys, .say, .hang-up")) part.hidden = !talks;
}

function write(phone, className, text) {
  const words = phone.card.querySelector(".words");
  words.append(element("p", { className, textContent: text }));
  words.scrollTop = words.scrollHeight;
}

function hearPhone(event, live) {
  if (!event.in_hand) return;
  if (event.colleague && !names.has(event.to)) names.set(event.to, "A colleague");
  const phone = phoneOf(event.to);
  if (event.kind === "say" && phone.sid === event.sid) {
    write(phone, event.who === "agent" ? "theirs agent" : "theirs", event.text);
    phone.language = event.language || phone.language;
    if (live && phone.status === "in-progress") speak(event.text, event.language);
  } else if (event.kind === "heard" || (event.kind === "gather" && !event.listens)) {
    if (event.said) write(phone, "mine", event.said);
    else if (event.digits) write(phone, "mine", `pressed ${event.digits}`);
  } else if (event.kind === "bridged") {
    write(phone, "note", "You two are connected.");
  } else if (event.kind === "agent") {
    write(phone, "note", event.on ? `Your agent has the call: ${event.url}` : "Your agent's session is over.");
  } else if (event.kind === "person" && event.do === "voice-mail") {
    phone.machine = true;
  } else if (event.kind === "person" && event.do === "let-ring") {
    write(phone, "note", "You let it ring. It stops when the ring time is over.");
  } else if (event.kind === "call") {
    if (phone.sid !== event.sid && LIVE.includes(phone.status) && phone.sid && event.status !== "queued") return;
    if (phone.sid !== event.sid) phone.card.querySelector(".words").replaceChildren();
    if (phone.sid !== event.sid) phone.machine = false;
    phone.sid = event.sid;
    phone.status = event.status;
    const hadFocus = phone.card.contains(document.activeElement);
    show(phone);
    if (hadFocus && !phone.card.contains(document.activeElement)) phone.card.focus();
    if (!LIVE.includes(event.status)) {
      if (live) hush();
      write(phone, "note", STATES[event.status]);
    }
    if (live) ringing(phone);
  }
}

function ringing(phone) {
  ringWhileNeeded();
  if (phone.status !== "ringing") {
    $("ringing").textContent = `${pretty(phone.number)}: ${STATES[phone.status]}`;
    return;
  }
  $("ringing").textContent = `${names.get(phone.number) ?? "A"}'s phone is ringing, ${pretty(phone.number)}. Call from ${pretty(caller)}.`;
  const active = document.activeElement;
  if (!active || active === document.body || active.matches("#signup .main, .phone")) phone.card.querySelector(".answer").focus();
}

// -- jobs and their timelines -----------------------------------------------------------------------------------------

const jobs = new Map(); // by id: the row
const attempts = new Map(); // by id: the job's id
const lines = new Map(); // by job: events
const owner = new Map(); // by user: the job's id
let unowned = [];
let everywhere = []; // events that belong to no job
let chosen = null;
let follows = true; // the newest job is shown until the person chooses one
let stale = false;

function jobOf(event) {
  if (event.job) return event.job;
  if (event.attempt) return attempts.get(event.attempt);
  if (event.user) return owner.get(event.user);
  if (event.to) return [...jobs.values()].findLast((job) => job.phone_e164 === event.to)?.id;
}

function keep(event) {
  if (["action", "switches", "pause"].includes(event.kind)) return void everywhere.push(event);
  const job = jobOf(event);
  if (!job) return void unowned.push(event);
  if (!lines.has(job)) lines.set(job, []);
  lines.get(job).push(event);
}

function take(event) {
  if (event.kind === "job") {
    if (event.gone) jobs.delete(event.row.id);
    else {
      event.was = jobs.get(event.row.id);
      if (!jobs.has(event.row.id) && follows) chosen = event.row.id;
      jobs.set(event.row.id, event.row);
      owner.set(event.row.user_id, event.row.id);
    }
  }
  if (event.kind === "attempt") {
    event.was = attempts.get(event.row.id + "row");
    attempts.set(event.row.id, event.row.job_id).set(event.row.id + "row", event.row);
  }
  keep(event);
  if (["job", "attempt"].includes(event.kind) && unowned.length) {
    const waiting = unowned.slice(-500);
    unowned = [];
    waiting.forEach(keep);
  }
}

const answered = (event) => (event.answer ? `${event.answer}${event.code ? ` (error ${event.code})` : ""}` : event.error ?? "no answer");
const took = (event) => (event.ms === undefined ? "" : `, ${event.ms} ms`);

// -> [who, what, class], or nothing where the event says nothing new
const TELL = {
  signup: (e) => ["Supabase", `auth.signUp: ${e.error ?? e.answer}`, e.answer === 200 ? "" : "bad"],
  "user-deleted": (e) => ["Supabase", `the user was deleted: ${e.answer}`],
  job: ({ row, was, gone }) => {
    if (gone) return ["database", "the job was deleted"];
    if (was && was.status === row.status && was.reason === row.reason && was.cancel_requested === row.cancel_requested) return;
    const why = row.reason ? `: ${row.reason}` : row.cancel_requested ? ": to be canceled" : "";
    const result = row.qualification ? ` ${JSON.stringify(row.qualification)}` : "";
    const tone = { completed: "stored", failed: "bad", in_doubt: "bad" }[row.status] ?? "";
    return ["database", `job ${row.id} is ${row.status.replace("_", " ")}${why}${result}`, tone];
  },
  attempt: ({ row, was, gone }) => {
    if (gone) return ["database", `attempt ${row.number} was released, unspent`];
    if (was && was.state === row.state && was.call_status === row.call_status) return;
    const more = [row.call_status, row.call_sid ? "" : row.error_message].filter(Boolean).join(", ");
    return ["database", `attempt ${row.number} is ${row.state.replace("_", " ")}${more ? ` (${more})` : ""}`];
  },
  answer: ({ row }) => ["database", `stored: ${row.question} = ${row.meaning} (${row.digits ? `key ${row.digits}` : "by the agent"})`, "stored"],
  "opt-out": ({ row }) => ["database", `stored: ${row.phone_e164} is never called again (${row.how})`, "stored"],
  told: (e) => ["receiver", `${e.type}: ${answered(e)}`, e.answer < 300 ? "stored" : "bad"],
  webhook: (e) => ["pg_net", `webhook: ${answered(e)}${took(e)}`, e.answer === 200 ? "" : "bad"],
  step: (e) => ["function", `${e.name}: ${[e.outcome ?? e.answer, e.code, e.call_status, e.meaning, e.reason].filter(Boolean).join(", ")}${took(e)}`],
  request: (e) => ["to Twilio", `${e.method} ${e.path.replace(/CA[0-9a-f]{32}/, (sid) => sid.slice(0, 8) + "…")}: ${answered(e)}${took(e)}`, e.answer < 400 && e.answer ? "" : "bad"],
  call: (e) => ["Twilio", `the ${e.colleague ? "colleague's leg" : "call"} is ${e.status}`],
  bridged: (e) => (e.colleague ? ["Twilio", "the person and the colleague are connected"] : undefined),
  callback: (e) => ["from Twilio", `POST ${e.path}${e.sequence === undefined || e.sequence === null ? "" : ` #${e.sequence} ${e.status}`}: ${answered(e)}${took(e)}`, e.answer && e.answer < 300 ? "" : "bad"],
  say: (e) => [e.who, `“${e.text}”`],
  agent: (e) => ["Twilio", `${e.on ? "hands the call over to" : "has the call back from"} ${e.url} (${e.noun})`],
  person: (e) => ["you", e.do === "press" ? `press ${e.keys}` : e.do === "say" ? `“${e.words}”` : e.do.replace("-", " ")],
  action: (e) => ["you", e.label, "broken"],
  pause: ({ row }) => ["database", row.paused_until ? `calls are paused: ${row.pause_reason}` : "calls are resumed", "broken"],
  switches: (e) => ["you", `${labels.get(e.name) ?? e.name}: ${e.now ? "on" : "off"}`, "broken"],
};

const shown = (event) => TELL[event.kind]?.(event);

function draw() {
  stale = false;
  drawTable();
  drawTimeline();
}

function drawTable() {
  const rows = [...jobs.values()].sort((a, b) => b.id - a.id);
  const focused = document.activeElement?.dataset?.job;
  $("jobs").replaceChildren(...rows.slice(0, MOST.rows).map((job) => {
    const choose = element("button", { type: "button", textContent: job.id, ariaLabel: `Timeline of job ${job.id}` });
    choose.dataset.job = job.id;
    choose.onclick = () => { $("story").hidden ||= chosen !== job.id; chosen = job.id; follows = job.id === rows[0].id; draw(); };
    const state = element("td", {}, element("span", { className: job.status, textContent: job.status.replace("_", " ") }));
    if (job.reason) state.append(element("small", { textContent: job.reason }));
    const row = element("tr", {}, element("td", {}, choose),
      element("td", {}, job.first_name ?? "–", element("small", { textContent: job.phone_e164 ? pretty(job.phone_e164) : job.phone_number })),
      element("td", { textContent: job.signup_mode }), state, element("td", { textContent: job.attempts }));
    if (job.id === chosen) row.ariaCurrent = "true";
    return row;
  }));
  if (rows.length > MOST.rows) $("jobs").append(element("tr", {}, element("td", { colSpan: 5, textContent: `and ${rows.length - MOST.rows} older ones` })));
  if (focused) document.querySelector(`[data-job="${focused}"]`)?.focus();
}

function drawTimeline() {
  const own = lines.get(chosen) ?? [];
  if (!own.length) return;
  const [first, last] = [Math.min(...own.map((e) => e.at)), Math.max(...own.map((e) => e.at))];
  const open = !jobs.get(chosen)?.finished_at;
  const around = everywhere.filter((e) => e.at >= first - 5000 && (open || e.at <= last));
  const all = [...own, ...around].map((event) => [event, shown(event)]).filter(([, told]) => told);
  all.sort(([a], [b]) => b.at - a.at || b.id - a.id);
  const job = jobs.get(chosen);
  $("timeline-title").textContent = `Timeline of job ${chosen}${job ? `: ${job.first_name ?? ""} ${pretty(job.phone_e164 ?? job.phone_number)}` : ""}`;
  $("timeline").replaceChildren(...all.slice(0, MOST.lines).map(([event, [who, what, tone]]) => element("li", { className: tone ?? "" },
    element("time", { textContent: `${Math.round(event.at - first).toLocaleString("en")} ms` }),
    element("span", { className: "who", textContent: who }), element("span", { textContent: what }))));
}

$("tell").onclick = () => attempt(ask("GET", `/api/story/${chosen ?? 0}`).then((told) => {
  $("story").replaceChildren(...told.map((sentence) => element("li", { textContent: sentence })));
  $("story").hidden = false;
}));

const COUNTS = ["queued", "dialing", "in_doubt", "calling", "ended"];

function count(counts) {
  $("counts").replaceChildren(...COUNTS.map((name) => element("div", {}, element("dt", { textContent: name.replace("_", " ") }), element("dd", { textContent: counts[name] ?? 0 }))));
  $("twice").textContent = counts.twice ?? 0;
  $("lost").textContent = counts.lost ?? 0;
  $("verdict").classList.toggle("bad", counts.twice + counts.lost > 0);
}

// -- the sandbox speaks -----------------------------------------------------------------------------------------------

const labels = new Map(); // of switches
let anonKey = "";
let replays = 0;

function hello(state) {
  caller = state.caller;
  anonKey = state.anon_key;
  replays = state.kept;
  for (const job of state.jobs) {
    jobs.set(job.id, job);
    owner.set(job.user_id, job.id);
    if (job.phone_e164) names.set(job.phone_e164, job.first_name);
  }
  for (const { id, job_id } of state.attempts) attempts.set(id, job_id);
  chosen ??= Math.max(...jobs.keys(), 0) || null;
  for (const number of state.phones) show(phoneOf(number));
  for (const job of jobs.values()) if (phones.has(job.phone_e164)) users.set(job.phone_e164, job.user_id);
  people();
  for (const call of state.calls) Object.assign(phoneOf(call.to), { sid: call.sid });
  const modes = document.forms[0].signup_mode;
  if (!modes.length) modes.append(...state.modes.map((mode) => new Option(mode, mode, false, mode === "demo")));
  if (!$("switches").children.length) build(state);
  for (const { name, on } of state.switches) $(`switch-${name}`).checked = on;
  document.body.dataset.write = state.write;
  $("save").hidden = !state.write;
  count(state.counts);
  worst(state.worst);
  propose();
  draw();
  document.body.dataset.ready = "yes";
}

function build({ switches, actions }) {
  for (const { name, label, help } of switches) {
    labels.set(name, label);
    const box = element("input", { type: "checkbox", id: `switch-${name}` });
    box.setAttribute("role", "switch");
    box.onchange = () => attempt(ask("POST", "/api/switch", { name, on: box.checked, number: current() }));
    $("switches").append(element("label", { className: "switch" }, box, label, element("small", { textContent: help })));
  }
  for (const { name, label, help } of actions) {
    const button = element("button", { type: "button", textContent: label });
    button.onclick = () => attempt(ask("POST", "/api/act", { name, number: current() }));
    $("actions").append(element("div", {}, button, element("small", { textContent: help })));
  }
}

function worst(state) {
  $("worst").disabled = state.running;
  const { counts } = state;
  $("worst-said").textContent = state.running ? `${state.step} of ${state.of}: ${state.label} (${state.seconds} s)`
    : state.done ? `${state.people} people in ${state.seconds} s: called twice: ${counts.twice} · lost: ${counts.lost} · still open: ${state.open}` : "";
}

function hear(message) {
  const event = JSON.parse(message.data);
  const live = replays <= 0;
  replays -= 1;
  if (event.kind === "counts") count(event.counts);
  else if (event.kind === "worst") worst(event);
  else {
    if (event.kind === "switches") for (const name of labels.keys()) $(`switch-${name}`).checked = event.on.includes(name);
    if (event.kind === "job" && event.row.phone_e164) names.set(event.row.phone_e164, event.row.first_name);
    hearPhone(event, live);
    if (event.kind !== "gather") take(event);
  }
  if (replays === 0) for (const phone of phones.values()) if (phone.status === "ringing") ringing(phone);
  if (!stale) {
    stale = true;
    setTimeout(draw, 100);
  }
}

if (token) {
  const source = new EventSource(`/api/events?token=${encodeURIComponent(token)}`);
  source.addEventListener("hello", (message) => hello(JSON.parse(message.data)));
  source.addEventListener("event", hear);
  source.onerror = () => complain(new Error("The sandbox does not answer. If it was stopped, start it again and open its new address."));
  source.onopen = () => ($("alert").hidden = true);
} else {
  $("alert").textContent = "This address lacks its token: open the one that make demo printed.";
  $("alert").hidden = false;
}

// -- the person signs up ----------------------------------------------------------------------------------------------

const form = $("signup");
let lastNumber = "";
const current = () => lastNumber || clean(form.phone.value);
const clean = (number) => "+" + number.replace(/\D/g, "");

function propose() {
  if (clean(form.phone.value) !== "+" && !users.has(clean(form.phone.value)) && ![...jobs.values()].some((job) => job.phone_e164 === clean(form.phone.value))) return;
  const taken = new Set([...jobs.values()].map((job) => job.phone_e164).concat(...phones.keys()));
  for (let n = 0; n < 100; n++) {
    const number = `+1415555${String(100 + n).padStart(4, "0")}`;
    if (!taken.has(number)) return void (form.phone.value = number);
  }
}

form.onsubmit = async (submitted) => {
  submitted.preventDefault();
  const { phone, first_name, signup_mode, company, timezone, language, pace } = form;
  const number = clean(phone.value);
  const data = Object.fromEntries(Object.entries({ first_name, signup_mode, company, timezone, language })
    .map(([key, field]) => [key, field.value.trim()]).filter(([, value]) => value));
  names.set(number, data.first_name);
  const said = $("signup-said");
  said.className = "";
  try {
    // What supabase.auth.signUp({ phone, password, options: { data } }) of supabase-js posts.
    const body = { phone: number, password: "correct horse", data, gotrue_meta_security: {}, channel: "sms" };
    const { user } = await ask("POST", "/auth/v1/signup", body, { apikey: anonKey, "X-Words-Per-Second": pace.value });
    users.set(number, user.id);
    lastNumber = number;
    show(phoneOf(number));
    said.textContent = `${data.first_name ?? number} has signed up.`;
    people();
    propose();
  } catch (error) {
    said.className = "problem";
    said.textContent = error.message;
  }
};

function people() {
  $("people").replaceChildren(...[...users].map(([number, id]) => {
    const button = element("button", { type: "button", textContent: "Delete this user", ariaLabel: `Delete this user: ${names.get(number) ?? ""} ${number}` });
    button.onclick = () => attempt(ask("DELETE", `/auth/v1/admin/users/${id}`).then(() => { users.delete(number); people(); }));
    return element("li", {}, element("span", {}, names.get(number) ?? "", " ", pretty(number)), button);
  }));
}

$("worst").onclick = () => attempt(ask("POST", "/api/act", { name: "worst_hour" }));

// -- the two views ----------------------------------------------------------------------------------------------------

function view() {
  const script = location.hash === "#script";
  $("telephone").hidden = script;
  $("script").hidden = !script;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === (location.hash || "#telephone")) link.ariaCurrent = "page";
    else link.removeAttribute("aria-current");
  }
}

addEventListener("hashchange", view);
view();
