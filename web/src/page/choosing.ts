/** What somebody chose: a file of a table or of arrays, or a folder of images by class. */

/** Files, as far as their names say what is in them. */
export type Choice =
  | { readonly kind: "table"; readonly file: File }
  | { readonly kind: "arrays"; readonly file: File }
  | { readonly kind: "images"; readonly files: readonly { readonly label: string; readonly file: File }[] };

/** A file with the path at which it was found. */
export interface Found {
  readonly file: File;
  readonly path: string;
}

const TABLE = /\.(csv|json|jsonl)(\.gz)?$/i;
const ARRAYS = /\.npz$/i;
const IMAGE = /\.(png|jpe?g|webp|bmp|gif|avif)$/i;
const MOST_FILES = 200_000;

/**
 * What files are.
 *
 * @returns a choice, or a sentence that says what is wrong.
 */
export function choiceOf(found: readonly Found[]): Choice | string {
  const seen = found.filter((each) => !each.path.split("/").some((part) => part.startsWith(".")));
  const [first] = seen;
  if (first === undefined) return "Nothing was in there. Choose a file, or a folder with images.";
  if (seen.length === 1 && TABLE.test(first.path)) return { kind: "table", file: first.file };
  if (seen.length === 1 && ARRAYS.test(first.path)) return { kind: "arrays", file: first.file };
  const images = seen.filter((each) => IMAGE.test(each.path));
  if (images.length === 0) {
    return seen.length === 1
      ? `${first.file.name} is of no kind that can be read here. Choose .csv, .json, .jsonl (also .gz), .npz, or a folder of images.`
      : "Choose one file of a table or of arrays, or one folder of images: these are several files.";
  }
  const labelled = images.map((each) => ({ label: each.path.split("/").at(-2) ?? "", file: each.file }));
  if (labelled.some((each) => each.label === "")) {
    return "An image alone has no class. Choose a folder that has a subfolder of images for each class.";
  }
  return { kind: "images", files: labelled };
}

/** The files of an input, a folder's with their paths. */
export function filesOf(input: HTMLInputElement): Found[] {
  return [...(input.files ?? [])].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
}

/** The files that were dropped, those of folders too. */
export async function filesDropped(data: DataTransfer): Promise<Found[]> {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  const found: Found[] = [];
  for (const entry of entries) await walk(entry, entry.name, found);
  return found;
}

async function walk(entry: FileSystemEntry, path: string, found: Found[]): Promise<void> {
  if (found.length >= MOST_FILES) return;
  if (entry.isFile) {
    const file = await new Promise<File>((take, fail) => (entry as FileSystemFileEntry).file(take, fail));
    found.push({ file, path });
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((take, fail) => reader.readEntries(take, fail));
    if (some.length === 0) return;
    for (const each of some) await walk(each, `${path}/${each.name}`, found);
  }
}
