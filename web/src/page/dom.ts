/** The page's elements, and numbers as it writes them. */

/** The element of an id, which index.html has. */
export function byId<Kind extends HTMLElement = HTMLElement>(id: string): Kind {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`index.html has no element ${id}`);
  return found as Kind;
}

/** A new element with a text, or with others in it. */
export function made<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  within: string | readonly Node[] = [],
  className = "",
): HTMLElementTagNameMap[Name] {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...(typeof within === "string" ? [within] : within));
  return element;
}

/** Bytes in decimal units, with three digits. */
export function bytes(count: number): string {
  if (count < 1000) return `${count} B`;
  const power = Math.min(Math.floor(Math.log10(count) / 3), 4);
  const value = count / 1000 ** power;
  return `${value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

/** A number with commas between thousands. */
export function counted(value: number): string {
  return value.toLocaleString("en");
}

/** Seconds in words, roughly. */
export function lasting(seconds: number): string {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}
