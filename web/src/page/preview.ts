/** The first rows of what was chosen, so that whoever chose it sees what will be read; nothing of it goes anywhere. */

import { readTable } from "../device/files";
import { type Npy, readNpz, textsOf } from "../device/npz";
import { type Cell, NoText, type Table } from "../device/tables";
import type { Choice } from "./choosing";
import { bytes, counted, made } from "./dom";

const ROWS = 5;
const PICTURES = 12;
const SIDE = 64; // pixels of a small picture
const ENOUGH = 1 << 20; // bytes of a long table that are read for its first rows
const MOST = 1 << 28; // bytes of arrays that are looked into here
const LONGEST = 160; // characters of a cell

/** What was chosen, as it is shown. */
export interface Shown {
  /** One line about it. */
  readonly text: string;
  /** The columns of a table; empty for images. */
  readonly columns: readonly string[];
  readonly preview: readonly Node[];
}

/**
 * Looks into what was chosen.
 *
 * @throws Error in one sentence where it can't be read.
 */
export async function look(choice: Choice): Promise<Shown> {
  if (choice.kind === "table") return tableShown(choice.file);
  if (choice.kind === "arrays") return arraysShown(choice.file);
  const labels = [...new Set(choice.files.map((each) => each.label))].sort();
  const some = spread(choice.files, PICTURES);
  const pictures = await Promise.all(some.map(async ({ label, file }) => figure(await drawnFile(file), label)));
  const text = `${counted(choice.files.length)} images of ${labels.length} classes: ${labels.slice(0, 12).join(", ")}`;
  return { text: labels.length > 12 ? `${text} …` : text, columns: [], preview: [made("div", pictures, "pictures")] };
}

async function tableShown(file: File): Promise<Shown> {
  const [table, isWhole] = await firstRows(file);
  const columns = [...table.columns.keys()];
  const head = made("tr", columns.map((name) => made("th", name)));
  for (const cell of head.children) cell.setAttribute("scope", "col");
  const rows = Array.from({ length: Math.min(ROWS, table.size) }, (_, row) =>
    made("tr", columns.map((name) => made("td", shown(table.columns.get(name)?.[row] ?? null)))),
  );
  const all = made("table", [made("thead", [head]), made("tbody", rows)]);
  const size = isWhole ? `${counted(table.size)} rows, ` : "";
  const text = `${file.name}: ${size}${columns.length} columns, ${bytes(file.size)}`;
  return { text, columns, preview: [all] };
}

/** The beginning of a long table whose lines are rows; else all of it. */
async function firstRows(file: File): Promise<[Table, boolean]> {
  if (file.size > ENOUGH && /\.(csv|jsonl)$/i.test(file.name)) {
    const begin = await file.slice(0, ENOUGH).arrayBuffer();
    const lines = new Uint8Array(begin).lastIndexOf(10);
    if (lines > 0) {
      const some = new File([begin.slice(0, lines + 1)], file.name);
      const found = await readTable(some).catch(() => null); // a cell of several lines may be cut in two
      if (found !== null) return [found, false];
    }
  }
  return [await readTable(file), true];
}

function shown(cell: Cell): string {
  const text = cell instanceof NoText ? `(${cell.kind})` : (cell ?? "");
  return text.length > LONGEST ? `${text.slice(0, LONGEST)} …` : text;
}

async function arraysShown(file: File): Promise<Shown> {
  if (file.size > MOST) return { text: `${file.name}: arrays, ${bytes(file.size)}`, columns: [], preview: [] };
  const found = await readNpz(file).catch((error: Error) => {
    throw new Error(`${file.name} can't be read: ${error.message}; write it anew with numpy.savez, images and labels`);
  });
  const [images, labels] = [found.get("images"), found.get("labels")];
  if (images === undefined || labels === undefined) {
    throw new Error(`${file.name} lacks an array images or labels; write it anew with numpy.savez, images and labels`);
  }
  const said = textsOf(labels) ?? [];
  const text = `${file.name}: ${counted(said.length)} images, ${bytes(file.size)}`;
  const places = spread(said.map((_, row) => row), PICTURES);
  const pictures = places.flatMap((row) => {
    const picture = drawnArray(images, row);
    return picture === null ? [] : [figure(picture, said[row] ?? "")];
  });
  return { text, columns: [], preview: [made("div", pictures, "pictures")] };
}

/** A few of many, evenly. */
function spread<Item>(all: readonly Item[], most: number): Item[] {
  const count = Math.min(all.length, most);
  return Array.from({ length: count }, (_, at) => all[Math.floor((at * all.length) / count)] as Item);
}

function figure(picture: HTMLCanvasElement, label: string): HTMLElement {
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", `a row of class ${label}`);
  return made("figure", [picture, made("figcaption", label)]);
}

async function drawnFile(file: File): Promise<HTMLCanvasElement> {
  const canvas = canvasOf(SIDE, SIDE);
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.max(SIDE / picture.width, SIDE / picture.height);
    const [wide, high] = [picture.width * scale, picture.height * scale];
    canvas.getContext("2d")?.drawImage(picture, (SIDE - wide) / 2, (SIDE - high) / 2, wide, high);
    picture.close();
  } catch {
    throw new Error(`${file.name} can't be read as an image; take it out of the folder, or save it anew as PNG or JPEG`);
  }
  return canvas;
}

/** An image of one channel or three, from its darkest value to its brightest; null where it is of no such form. */
function drawnArray(images: Npy, row: number): HTMLCanvasElement | null {
  const [, channels, high, wide] = images.shape;
  if (images.kind !== "f4" || !high || !wide || (channels !== 1 && channels !== 3) || high * wide > 1 << 20) return null;
  const size = channels * high * wide;
  const data = images.data.slice(row * size * 4, (row + 1) * size * 4);
  const values = new Float32Array(data.buffer, 0, size);
  const [least, most] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const pixels = new ImageData(wide, high);
  for (let at = 0; at < high * wide; at++) {
    for (let colour = 0; colour < 3; colour++) {
      const value = values[(channels === 3 ? colour * high * wide : 0) + at] as number;
      pixels.data[4 * at + colour] = (255 * (value - least)) / (most - least || 1);
    }
    pixels.data[4 * at + 3] = 255;
  }
  const canvas = canvasOf(wide, high);
  canvas.getContext("2d")?.putImageData(pixels, 0, 0);
  return canvas;
}

function canvasOf(wide: number, high: number): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [wide, high];
  return canvas;
}
