/** The page: connect, choose rows, see what leaves, take part. The device itself runs in a worker. */

import type { Event, Order, Rows } from "../device/events";
import { type Choice, type Found, choiceOf, filesDropped, filesOf } from "./choosing";
import { byId } from "./dom";
import { Leaving } from "./leaving";
import { type Link, idOf, linkOfAddress, linkOfText, unlink } from "./link";
import { look } from "./preview";
import { Showing } from "./showing";
import { Working } from "./working";

const [TEXT, LABEL] = [/^(text|sentence|content|review|comment|premise|question)/i, /^(label|class|category|mood|target|y$)/i];
const COLUMNS = ["text-column", "pair-column", "label-column"];
const leaving = new Leaving();
const showing = new Showing(leaving);
let link: Link | null = null;
let choice: Choice | null = null;
let worker: Working | null = null;
let names: readonly string[] = []; // of the table's columns
let looked = 0; // which choice was looked into last: an earlier one may take longer

function say(problem: string): void {
  byId("problem").textContent = problem;
  byId("problem").hidden = problem === "";
}

// Connect.

function connect(found: Link | null): void {
  link = found;
  byId("linked").hidden = found === null;
  byId("unlinked").hidden = found !== null;
  if (found !== null) byId("linked-text").textContent = `${location.host}, as device ${idOf(found.token)}.`;
}

byId("unlink").addEventListener("click", () => {
  unlink();
  connect(null);
  byId("token").focus();
});

byId<HTMLInputElement>("token").addEventListener("change", (event) => {
  const field = event.target as HTMLInputElement;
  const found = field.value.trim() ? linkOfText(field.value) : null;
  say(typeof found === "string" ? found : "");
  if (found === null || typeof found === "string") return;
  field.value = "";
  connect(found);
  byId("unlink").focus();
});

// Choose.

async function choose(found: readonly Found[]): Promise<void> {
  const mine = ++looked;
  const chosen = choiceOf(found);
  if (typeof chosen === "string") return say(chosen);
  say("");
  byId("chosen").hidden = false;
  byId("chosen-text").textContent = "Looking into it …";
  byId("columns").hidden = byId("columns-help").hidden = true;
  byId("preview").replaceChildren();
  try {
    const { text, columns, preview } = await look(chosen);
    if (mine !== looked) return;
    choice = chosen;
    byId("chosen-text").textContent = text;
    byId("preview").replaceChildren(...preview);
    byId("preview").hidden = preview.length === 0;
    offer(columns);
  } catch (error) {
    if (mine !== looked) return;
    choice = null;
    byId("chosen").hidden = true;
    say(sentence((error as Error).message));
  }
}

/** The columns of a table, with those chosen whose names say what they are. */
function offer(columns: readonly string[]): void {
  names = columns;
  byId("columns").hidden = byId("columns-help").hidden = columns.length === 0;
  const text = columns.find((name) => TEXT.test(name)) ?? columns[0] ?? "";
  const label = columns.find((name) => LABEL.test(name)) ?? columns.find((name) => name !== text) ?? "";
  const pair = columns.find((name) => /^(pair|hypothesis|sentence2)$/i.test(name)) ?? "";
  for (const [id, chosen, none] of [["text", text, false], ["pair", pair, true], ["label", label, false]] as const) {
    const select = byId<HTMLSelectElement>(`${id}-column`);
    select.replaceChildren(...(none ? [new Option("none", "")] : []), ...columns.map((name) => new Option(name, name)));
    select.value = chosen;
  }
  mark();
}

/** Shows which columns are read. */
function mark(): void {
  const read = new Set(COLUMNS.map((id) => byId<HTMLSelectElement>(id).value));
  for (const row of byId("preview").querySelectorAll("tr")) {
    [...row.cells].forEach((cell, at) => cell.classList.toggle("unread", !read.has(names[at] ?? "")));
  }
}

for (const id of COLUMNS) byId(id).addEventListener("change", mark);

for (const id of ["file", "folder"]) {
  byId<HTMLInputElement>(id).addEventListener("change", (event) => {
    const input = event.target as HTMLInputElement;
    const found = filesOf(input);
    if (found.length > 0) void choose(found);
  });
}

const drop = byId("drop");
for (const name of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
  });
}
drop.addEventListener("drop", (event) => {
  if (event.dataTransfer) void filesDropped(event.dataTransfer).then(choose, (error: Error) => say(sentence(error.message)));
});

byId<HTMLInputElement>("keep-labels").addEventListener("change", (event) => {
  leaving.keepLabels((event.target as HTMLInputElement).checked);
});

// Take part.

function rows(chosen: Choice): Rows | string {
  if (chosen.kind !== "table") return chosen;
  const [text, pair, label] = ["text", "pair", "label"].map((id) => byId<HTMLSelectElement>(`${id}-column`).value);
  if (!text || !label) return "Say which columns are the text and the label.";
  if (text === label || pair === text || pair === label) return "Text and label must be different columns: choose another.";
  return { kind: "table", file: chosen.file, text, label, ...(pair ? { pair } : {}) };
}

byId<HTMLFormElement>("setup").addEventListener("submit", (event) => {
  event.preventDefault();
  if (link === null) {
    say("Paste the link that you were given first.");
    return byId("token").focus();
  }
  if (choice === null) {
    say("Choose your rows first.");
    return byId("file").focus();
  }
  const own = rows(choice);
  if (typeof own === "string") {
    say(own);
    return byId("text-column").focus();
  }
  join(link, own, byId<HTMLInputElement>("keep-labels").checked);
});

function join(to: Link, own: Rows, keepLabels: boolean): void {
  say("");
  byId("setup").hidden = true;
  byId("run").hidden = false;
  showing.begin();
  worker = new Working(new Worker(new URL("../device/worker.ts", import.meta.url), { type: "module" }), hear);
  tell({ type: "join", url: to.url, token: to.token, rows: own, keepLabels });
  byId("run-title").scrollIntoView({ block: "nearest" });
  byId("pause").focus();
}

function tell(order: Order): void {
  worker?.tell(order);
}

function hear(event: Event): void {
  const had = document.activeElement;
  showing.hear(event);
  if (event.type !== "state") return;
  if (event.state === "failed") say(sentence(event.detail ?? "The device stopped, and said nothing."));
  if (!["failed", "left", "finished"].includes(event.state)) return;
  if (event.state !== "finished") end(); // of a finished run the server asks to keep where it stands
  if (had === byId("pause") || had === byId("leave")) byId("again").focus(); // which take the place of these
}

function end(): void {
  worker?.end();
  worker = null;
}

byId("pause").addEventListener("click", () => tell({ type: showing.state === "paused" ? "resume" : "pause" }));
byId("leave").addEventListener("click", () => tell({ type: "leave" }));
byId("again").addEventListener("click", () => {
  end();
  say("");
  byId("run").hidden = true;
  byId("setup").hidden = false;
  byId("join").focus();
});

/** A line as a sentence. */
function sentence(line: string): string {
  const text = line.charAt(0).toUpperCase() + line.slice(1);
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

connect(linkOfAddress());
addEventListener("hashchange", () => {
  const found = linkOfAddress();
  if (found !== null && worker === null) connect(found);
});
