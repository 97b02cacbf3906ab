/** A curve over the steps of a run, drawn as it grows. */

import { counted } from "./dom";

const HIGH = 190;
const [LEFT, RIGHT, TOP, BELOW] = [46, 14, 12, 24];
const SPACE = "http://www.w3.org/2000/svg";

type Point = readonly [step: number, value: number];

/** How a curve is named and written. */
export interface About {
  /** As an accessible name says it. */
  readonly name: string;
  readonly digits: number;
  /** A value that the axis has at least, and at most. */
  readonly least?: number;
  readonly most?: number;
}

/** One curve in a figure; a step that comes again, as behind a checkpoint, takes away what came after it. */
export class Curve {
  private points: Point[] = [];
  private steps = 0;
  private readonly svg = document.createElementNS(SPACE, "svg");

  constructor(
    private readonly figure: HTMLElement,
    private readonly about: About,
  ) {
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("height", String(HIGH));
    figure.append(this.svg);
    new ResizeObserver(() => this.draw()).observe(figure);
  }

  /** Begins anew, for a run of so many steps. */
  begin(steps: number): void {
    if (steps === this.steps) return;
    this.steps = steps;
    this.draw();
  }

  clear(): void {
    this.points = [];
    this.draw();
  }

  add(step: number, value: number): void {
    this.points = [...this.points.filter((point) => point[0] < step), [step, value]];
    this.draw();
  }

  private draw(): void {
    const wide = Math.floor(this.figure.clientWidth);
    this.figure.classList.toggle("empty", this.points.length === 0);
    if (wide < LEFT + RIGHT + 40) return;
    this.svg.setAttribute("width", String(wide));
    this.svg.setAttribute("viewBox", `0 0 ${wide} ${HIGH}`);
    this.svg.setAttribute("aria-label", this.said());
    const values = this.points.map((point) => point[1]);
    const { least = Math.min(...values, Infinity), most = Math.max(...values, -Infinity) } = this.about;
    const marks = ticks(Math.min(least, ...values), Math.max(most, ...values));
    const [low, high] = [marks[0] as number, marks.at(-1) as number];
    const steps = Math.max(this.steps, this.points.at(-1)?.[0] ?? 0, 1);
    const x = (step: number): number => LEFT + ((wide - LEFT - RIGHT) * step) / steps;
    const y = (value: number): number => TOP + (HIGH - TOP - BELOW) * (1 - (value - low) / (high - low));
    const parts: SVGElement[] = [];
    for (const mark of marks) {
      parts.push(drawn("line", { class: "grid", x1: LEFT, x2: wide - RIGHT, y1: y(mark), y2: y(mark) }));
      parts.push(drawn("text", { class: "tick", x: LEFT - 8, y: y(mark) + 4, "text-anchor": "end" }, short(mark)));
    }
    for (const [step, anchor] of [[0, "start"], [steps, "end"]] as const) {
      const text = step ? `step ${counted(step)}` : "0";
      parts.push(drawn("text", { class: "tick", x: x(step), y: HIGH - 6, "text-anchor": anchor }, text));
    }
    if (this.points.length > 0) {
      const line = this.points.map(([step, value], at) => `${at ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`);
      parts.push(drawn("path", { class: "curve", d: line.join("") }));
      const [step, value] = this.points.at(-1) as Point;
      parts.push(drawn("circle", { class: "last", cx: x(step), cy: y(value), r: 4 }));
    }
    this.svg.replaceChildren(...parts);
  }

  private said(): string {
    const { name, digits } = this.about;
    const [first, last] = [this.points[0], this.points.at(-1)];
    if (first === undefined || last === undefined) return `${name}: nothing measured yet`;
    return `${name}: ${first[1].toFixed(digits)} at step ${first[0]}, ${last[1].toFixed(digits)} at step ${last[0]}`;
  }
}

/** Round numbers around a range, three to six of them; those of an empty range are 0 and 1. */
export function ticks(least: number, most: number): number[] {
  if (!Number.isFinite(least) || !Number.isFinite(most)) return [0, 1];
  const range = most - least || Math.abs(most) || 1;
  const rough = 10 ** Math.floor(Math.log10(range));
  const step = [0.2, 0.5, 1, 2].map((each) => each * rough).find((each) => range / each <= 4.5) ?? 2 * rough;
  const first = Math.floor(least / step + 1e-9);
  const last = Math.max(Math.ceil(most / step - 1e-9), first + 1);
  return Array.from({ length: last - first + 1 }, (_, at) => (first + at) * step);
}

function short(value: number): string {
  return String(Number(value.toPrecision(4)));
}

function drawn(name: string, values: Record<string, string | number>, text = ""): SVGElement {
  const element = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(values)) element.setAttribute(key, String(value));
  element.textContent = text;
  return element;
}
