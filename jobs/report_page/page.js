"use strict";
// Figures are drawn when they come near the screen; the library itself is read at the first of them, after the first
// screen is there. Nothing is fetched.
const facts = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const drawn = new Set();
const element = (name, text, attributes = {}) => {
  const made = Object.assign(document.createElement(name), text === undefined ? {} : { textContent: text });
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};
const percent = (share) => (share * 100).toFixed(share < 0.1 ? 1 : 0) + "\u00a0%";

function library() {
  if (window.Plotly) return;
  const script = document.createElement("script");
  script.textContent = document.getElementById("plotly").textContent;
  document.head.append(script);
}

function merge(base, over) {
  const made = { ...base };
  for (const [key, value] of Object.entries(over)) {
    const plain = (x) => x && typeof x === "object" && !Array.isArray(x);
    made[key] = plain(value) && plain(made[key]) ? merge(made[key], value) : value;
  }
  return made;
}

function themed(figure) {
  const style = getComputedStyle(root);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--soft"), linecolor: colour("--line"), fixedrange: true };
  const narrow = window.innerWidth < 600;
  const layout = merge(
    {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: figure.height,
      font: { family: "system-ui, sans-serif", size: narrow ? 12 : 13.5, color: colour("--ink") },
      margin: { l: 60, r: 20, t: 28, b: 56 }, xaxis: axis, yaxis: axis, yaxis2: axis, hoverlabel: { font: { size: 13 } },
    },
    figure.layout,
  );
  const data = figure.data.map((trace) =>
    trace.type === "sankey" ? merge(trace, { textfont: { color: colour("--ink"), size: narrow ? 10 : 13, shadow: "none" } }) : trace,
  );
  return [data, layout];
}

async function draw(place) {
  const name = place.dataset.figure;
  drawn.add(name);
  library();
  const [data, layout] = themed(structuredClone(facts.figures[name]));
  await window.Plotly.react(place, data, layout, { responsive: true, displayModeBar: false });
  if (name === "reasons" && !place.dataset.ready) place.on("plotly_click", (event) => showSamples(event.points[0].y));
  place.dataset.ready = "true";
}

const places = [...document.querySelectorAll(".plot")];
const watch = new IntersectionObserver(
  (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => { watch.unobserve(e.target); draw(e.target); }),
  { rootMargin: "300px" },
);
requestAnimationFrame(() => setTimeout(() => places.forEach((place) => watch.observe(place)), 0));
window.addEventListener("beforeprint", () => places.forEach((place) => drawn.has(place.dataset.figure) || draw(place)));

// Theme: as the system, light, dark, in turn.
const themes = ["system", "light", "dark"];
const button = document.getElementById("theme");
const redraw = () => places.forEach((place) => drawn.has(place.dataset.figure) && draw(place));
function setTheme(theme) {
  if (theme === "system") delete root.dataset.theme;
  else root.dataset.theme = theme;
  button.textContent = "Theme: " + (theme === "system" ? "as the system" : theme);
  try { localStorage.setItem("theme", theme); } catch { /* files without storage: the choice lasts for the page */ }
  redraw();
}
button.addEventListener("click", () => setTheme(themes[(themes.indexOf(root.dataset.theme || "system") + 1) % themes.length]));
try { const kept = localStorage.getItem("theme"); if (themes.includes(kept)) setTheme(kept); } catch { /* as above */ }
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// Rows that were refused.
function showSamples(reason) {
  const rows = facts.samples[reason] || [];
  document.querySelectorAll(".reason").forEach((b) => b.setAttribute("aria-expanded", String(b.dataset.reason === reason)));
  const into = document.getElementById("samples");
  into.replaceChildren(element("h4", `${reason}: ${rows.length ? rows.length + " such rows, as they were read" : "no rows kept as samples"}`));
  rows.forEach((row) => into.append(element("pre", row)));
}
document.querySelectorAll(".reason").forEach((b) => b.addEventListener("click", () => showSamples(b.dataset.reason)));

// People.
const people = new Map(facts.people.map((person) => [person.user, person]));
function panel(title, ...inside) {
  const made = element("div");
  made.append(element("h3", title), ...inside);
  return made;
}
function interestTable(person) {
  const days = [...new Set(person.interests.flatMap((i) => Object.keys(i.ahead)))].sort((a, b) => a - b);
  const table = element("table");
  const head = element("tr");
  ["interest", "latest events", "next event", ...days.map((d) => `${d} d`), "trend"].forEach((x) => head.append(element("th", x, { scope: "col" })));
  const top = element("thead");
  top.append(head);
  const body = element("tbody");
  for (const interest of person.interests) {
    const row = element("tr");
    row.append(element("td", interest.name), element("td", percent(interest.past)));
    const next = element("td", percent(interest.next) + " ");
    next.append(element("span", "", { class: "bar", style: `width:${Math.round(interest.next * 60)}px`, "aria-hidden": "true" }));
    row.append(next, ...days.map((d) => element("td", d in interest.ahead ? percent(interest.ahead[d]) : "–")));
    row.append(element("td", interest.trend, { class: "trend-" + interest.trend }));
    body.append(row);
  }
  table.append(top, body);
  const scroll = element("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": "interests" });
  scroll.append(table);
  return scroll;
}
function showPerson(user) {
  const into = document.getElementById("person");
  const person = people.get(user.trim());
  if (!person) {
    const near = [...people.keys()].filter((name) => name.includes(user.trim())).slice(0, 8);
    into.replaceChildren(element("p", `No user “${user}” in the sample.` + (near.length ? ` Similar: ${near.join(", ")}.` : "")));
    return;
  }
  const timeline = element("ol", undefined, { class: "timeline", tabindex: "0", "aria-label": "sessions" });
  for (const s of [...person.sessions].reverse()) {
    const line = element("li");
    line.append(element("b", s.start.replace("T", " ")), ` ${s.n} event${s.n === 1 ? "" : "s"}: ${s.categories.join(", ")} `, element("small", s.actions.join(", ")));
    timeline.append(line);
  }
  const items = element("ol");
  for (const item of person.items) {
    const line = element("li");
    line.append(element("b", item.item), ` ${percent(item.p)} `);
    line.append(element("small", item.why.length ? "after " + item.why.join("; ") : "nothing of the kind in the weeks shown"));
    items.append(line);
  }
  const grid = element("div", undefined, { class: "person" });
  grid.append(
    panel(`${person.user}: interests`, element("p", `Scores by: ${person.provenance}`), interestTable(person)),
    panel(`Sessions, latest first (${person.sessions.length} of ${person.n_sessions})`, timeline),
    panel("Recommended items", element("p", "Beside each item the user's latest events with it or in its category."), items),
  );
  if (person.moved && person.moved.read) {
    const moved = [];
    for (const [what, effects] of [[person.moved.interest, person.moved.by_interest], [person.moved.item, person.moved.by_item]]) {
      moved.push(element("h4", `Towards ${what}`));
      const list = element("ul");
      effects.forEach(([event, factor]) => list.append(element("li", `× ${factor.toFixed(2)}  ${event}`)));
      moved.push(effects.length ? list : element("p", "Only one event is known: nothing to compare with."));
    }
    const how = `Of the ${person.moved.read} events the model read. × 2: without the event it would be half as likely.`;
    grid.append(panel("Events that moved the scores most", element("p", how), ...moved));
  }
  if (person.outlook.length) {
    const list = element("ul");
    person.outlook.forEach((line) => list.append(element("li", line)));
    grid.append(panel("When the user is back", list));
  }
  into.replaceChildren(grid);
}
document.getElementById("search").addEventListener("submit", (event) => {
  event.preventDefault();
  showPerson(document.getElementById("user").value);
});
if (facts.people.length) {
  document.getElementById("user").value = facts.people[0].user;
  showPerson(facts.people[0].user);
}
root.dataset.ready = String(Math.round(performance.now()));
