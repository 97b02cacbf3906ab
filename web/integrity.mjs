// Behind a build: each script and style of index.html is named with its digest, which the browser then asks for.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const dist = new URL("dist/", import.meta.url).pathname;
const page = readFileSync(join(dist, "index.html"), "utf8");
let named = 0;
const done = page.replace(/<(script|link)\b[^>]*?\b(?:src|href)="\.?\/(assets\/[^"]+\.(?:js|css))"/g, (tag, _kind, file) => {
  const digest = createHash("sha384").update(readFileSync(join(dist, file))).digest("base64");
  named++;
  return `${tag} integrity="sha384-${digest}"`;
});
if (named < 2) throw new Error("dist/index.html has no script and no style to name with a digest");
writeFileSync(join(dist, "index.html"), done);
console.log(`${named} files of dist/index.html are named with their digests`);
