// The stand-in's own state, asked for twice a second.
const RINGING = [["Answer", "answer"], ["Decline", "decline"], ["Busy", "busy"], ["Let it ring", "let-ring"], ["Voice mail", "voice-mail"]];
const TALKING = [...[..."123456789*0#"].map((key) => [key, "press", key]), ["Hang up", "hang-up"]];
let before = "";

function element(tag, text, ...children) {
  const made = document.createElement(tag);
  made.append(text, ...children);
  return made;
}

function phone({ to, status }) {
  const buttons = (status === "ringing" ? RINGING : status === "in-progress" ? TALKING : []).map(([label, what, keys = ""]) => {
    const button = element("button", label);
    button.onclick = () => fetch(`/_sandbox/phones/${encodeURIComponent(to)}`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ do: what, keys }),
    }).then(look);
    return button;
  });
  return element("article", "", element("h3", `${to}: ${status}`), element("div", "", ...buttons));
}

function call({ accepted_at, to, status, transcript, errors }) {
  const lines = transcript.map(({ who, text, digits, said }) => (who === "call" ? `says: ${text}` : said ? `says back: ${said}` : `presses ${digits}`));
  const wrong = errors.map(({ code, message }) => `error ${code}: ${message}`);
  const cell = element("td", "", ...[...lines, ...wrong].map((line) => element("p", line)));
  return element("tr", "", element("td", accepted_at.slice(11, 23)), element("td", to), element("td", status), cell);
}

async function look() {
  const [calls, phones] = await Promise.all(["calls", "phones"].map((name) => fetch(`/_sandbox/${name}`).then((answer) => answer.json())));
  const now = JSON.stringify([calls, phones.map(({ to, status }) => [to, status])]);
  if (now === before) return;
  before = now;
  document.getElementById("none").hidden = phones.length > 0;
  document.getElementById("phones").replaceChildren(...phones.map(phone));
  document.getElementById("calls").replaceChildren(...calls.reverse().slice(0, 100).map(call));
}

setInterval(look, 500);
look();
