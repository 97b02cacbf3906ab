import { expect, test } from "vitest";

import { Slopes } from "../../src/core/messages";
import { Replica } from "../../src/core/replay";
import { Directions, seedsUnder } from "../../src/core/seeds";
import { tensor } from "../../src/core/tensor";
import { UpdateRule } from "../../src/core/update";
import { takeAgreed } from "../../src/device/party";

test("a step may have more slopes than a call has arguments", () => {
  const sgd = { optimizer: "sgd", lr: 1, momentum: 0, weightDecay: 0, normalize: false, clip: null } as const;
  const groups = [["a"], ...Array<string[]>(299_999).fill([])];
  const theta = new Replica(
    new Map([["a", tensor("float32", [1], new Float32Array(1))]]),
    new UpdateRule(sgd),
    new Directions(seedsUnder(0, "direction", "bottom"), "rademacher"),
    undefined,
    { groups, exact: [] },
  );
  const slopes = new Float32Array(groups.length);
  slopes[0] = 1;
  takeAgreed(theta, new Slopes(0, tensor("float32", [slopes.length], slopes)), 1);
  expect(theta.position).toBe(1);
  expect(Math.abs(theta.parameters.get("a")?.data[0] as number)).toBe(1);
});
