/**
 * What a page makes of files of rows, under Node, for comparison with the native device.
 *
 * On standard input is a JSON object: `tokens` {file, how, texts, pairs}, `table` a path, `resize` {width, height, data
 * (base64 of RGB), to [width, height], resample}, or `npz` a path. On standard output is what came of it as JSON, or
 * `error` with its line.
 */

import { readFileSync } from "node:fs";
import { basename } from "node:path";

import { type Table, NoText } from "../../src/device/tables";
import { readNpz, textsOf } from "../../src/device/npz";
import { Encoder, type How } from "../../src/device/tokens";
import { readTable } from "../../src/device/files";
import { resized } from "../../src/device/pictures";

interface Tokens {
  readonly file: string;
  readonly how: How;
  readonly texts: string[];
  readonly pairs: string[] | null;
}

interface Resize {
  readonly width: number;
  readonly height: number;
  readonly data: string;
  readonly to: [number, number];
  readonly resample: number;
}

interface Asked {
  readonly tokens?: Tokens;
  readonly table?: string;
  readonly resize?: Resize;
  readonly npz?: string;
}

function tokens({ file, how, texts, pairs }: Tokens): unknown {
  const [ids, types] = new Encoder(readFileSync(file), how).rows(texts, pairs);
  const listed = (of: typeof ids): number[][] => texts.map((_, place) => Array.from(of.of(place)));
  return { ids: listed(ids), types: types === null ? null : listed(types) };
}

function told(table: Table): unknown {
  const cells = [...table.columns].map(([name, column]) => [
    name,
    column.map((cell) => (cell instanceof NoText ? { kind: cell.kind } : cell)),
  ]);
  return { columns: cells, places: Array.from({ length: table.size }, (_, row) => table.place(row)) };
}

async function came(asked: Asked): Promise<unknown> {
  if (asked.tokens) return tokens(asked.tokens);
  if (asked.table) return told(await readTable(new File([readFileSync(asked.table)], basename(asked.table))));
  if (asked.resize) {
    const { width, height, data, to, resample } = asked.resize;
    const pixels = { width, height, channels: 3, data: new Uint8Array(Buffer.from(data, "base64")) };
    return Buffer.from(resized(pixels, to[0], to[1], resample).data).toString("base64");
  }
  const found = await readNpz(new File([readFileSync(asked.npz as string)], "rows.npz"));
  return [...found].map(([name, array]) => [name, array.kind, array.shape, textsOf(array) ?? null]);
}

const lines = readFileSync(0, "utf8").trim().split("\n");
for (const line of lines) {
  try {
    console.log(JSON.stringify(await came(JSON.parse(line) as Asked)));
  } catch (error) {
    console.log(JSON.stringify({ error: (error as Error).message }));
  }
}
