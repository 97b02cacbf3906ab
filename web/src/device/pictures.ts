/**
 * Pictures as the model wants them: eight bits each of red, green and blue, on a white ground, upright.
 *
 * The browser decodes them. What it makes of opaque pictures of eight bits is what the native device's library makes
 * of them; they are then resized as that library does it, in the same whole numbers (Pillow's `resize`).
 */

import { RowError } from "../core/errors";
import { shown } from "./facts";

/** What a package says of images: their size (H, W), and the number of a filter. */
export interface PictureForm {
  readonly size: readonly number[];
  readonly resample: number;
}

/** Pixels in rows from the top, `channels` bytes each. */
export interface Pixels {
  readonly width: number;
  readonly height: number;
  readonly channels: number;
  readonly data: Uint8Array | Uint8ClampedArray;
}

const NEAREST = 0;
const BITS = 22; // behind the point of a weight

interface Filter {
  readonly support: number;
  readonly weight: (x: number) => number;
}

const sinc = (x: number): number => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

/** By the library's numbers; 0 is the nearest pixel. */
const FILTERS: Readonly<Record<number, Filter>> = {
  1: { support: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
  2: { support: 1, weight: (x) => Math.max(1 - Math.abs(x), 0) },
  3: { support: 2, weight: cubic },
  4: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  5: { support: 1, weight: (x) => (Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(x * Math.PI))) },
};

function cubic(at: number): number {
  const [x, a] = [Math.abs(at), -0.5];
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** The pictures as (n, H, W, 3) bytes; RowError where one can't be read. */
export async function decoded(files: readonly File[], how: PictureForm): Promise<Uint8Array<ArrayBuffer>> {
  const [height, width] = how.size as [number, number];
  const made = new Uint8Array(files.length * height * width * 3);
  for (const [place, file] of files.entries()) {
    const pixels = resized(await read(file), width, height, how.resample);
    const from = place * height * width * 3;
    for (let at = 0; at < height * width; at += 1) {
      for (let colour = 0; colour < 3; colour += 1)
        made[from + 3 * at + colour] = pixels.data[4 * at + colour] as number;
    }
  }
  return made;
}

async function read(file: File): Promise<Pixels> {
  try {
    const picture = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
    const { width, height } = picture;
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    if (context === null) throw new Error("this browser gives no canvas");
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(picture, 0, 0);
    picture.close();
    return { width, height, channels: 4, data: context.getImageData(0, 0, width, height).data };
  } catch (error) {
    const why = (error as Error).message || (error as Error).name;
    throw new RowError(`image ${shown(file.name, 200)} can't be read: ${why}`);
  }
}

/** A picture in another size, by the filter of this number. */
export function resized(pixels: Pixels, width: number, height: number, resample: number): Pixels {
  if (pixels.width === width && pixels.height === height) return pixels;
  const filter = FILTERS[resample];
  if (resample === NEAREST || filter === undefined) return nearest(pixels, width, height);
  const inWidth = (from: Pixels): Pixels =>
    from.width === width ? from : turned(stretched(turned(from), width, filter));
  const inHeight = (from: Pixels): Pixels => (from.height === height ? from : stretched(from, height, filter));
  // Between the two passes values are rounded to bytes, so the order shows; found by trying sizes on Pillow 13.
  const [rows, columns] = [pixels.height - height, pixels.width - width];
  return rows > 0 && rows > 2 * columns ? inWidth(inHeight(pixels)) : inHeight(inWidth(pixels));
}

function nearest(pixels: Pixels, width: number, height: number): Pixels {
  const { channels } = pixels;
  const data = new Uint8Array(width * height * channels);
  const columns = placesIn(pixels.width, width);
  placesIn(pixels.height, height).forEach((row, y) => {
    columns.forEach((column, x) => {
      const from = (row * pixels.width + column) * channels;
      data.set(pixels.data.subarray(from, from + channels), (y * width + x) * channels);
    });
  });
  return { width, height, channels, data };
}

/** Of each of `made` pixels the one of `count` that its middle is in, found step by step as the library does. */
function placesIn(count: number, made: number): number[] {
  const step = count / made;
  let middle = step * 0.5;
  return Array.from({ length: made }, () => {
    const place = Math.trunc(middle);
    middle += step;
    return place;
  });
}

/** Rows as columns. */
function turned(pixels: Pixels): Pixels {
  const { width, height, channels } = pixels;
  const data = new Uint8Array(pixels.data.length);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const from = (y * width + x) * channels;
      for (let at = 0; at < channels; at += 1)
        data[(x * height + y) * channels + at] = pixels.data[from + at] as number;
    }
  }
  return { width: height, height: width, channels, data };
}

/** The picture with another number of rows, each a weighted sum of those around it. */
function stretched(pixels: Pixels, height: number, filter: Filter): Pixels {
  const scale = pixels.height / height;
  const wide = Math.max(scale, 1);
  const each = pixels.width * pixels.channels;
  const data = new Uint8Array(height * each);
  const sums = new Int32Array(each);
  for (let row = 0; row < height; row += 1) {
    const centre = (row + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - filter.support * wide + 0.5), 0);
    const behind = Math.min(Math.trunc(centre + filter.support * wide + 0.5), pixels.height);
    const weights = Array.from({ length: behind - first }, (_, at) =>
      filter.weight((at + first - centre + 0.5) / wide),
    );
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    sums.fill(1 << (BITS - 1));
    for (const [at, weight] of weights.entries()) {
      const share = (total ? weight / total : weight) * (1 << BITS);
      const whole = Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
      const from = (first + at) * each;
      for (let place = 0; place < each; place += 1) {
        sums[place] = (sums[place] as number) + (pixels.data[from + place] as number) * whole;
      }
    }
    for (let place = 0; place < each; place += 1) {
      data[row * each + place] = Math.min(Math.max((sums[place] as number) >> BITS, 0), 255);
    }
  }
  return { ...pixels, height, data };
}
