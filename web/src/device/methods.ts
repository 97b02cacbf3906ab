/**
 * The device's sides of the methods that it can take part in, as conversations: each yield is a message up, one down.
 *
 * They are those of the reference (halfback/algorithms, where the papers and the whole of each step are): HO-SFL, its
 * pipelined form, HOSL and ZO-SFL.
 */

import type { Batch } from "../core/batches";
import { Both, Exact, type Message, Slopes } from "../core/messages";
import { Cotangent, perturbed } from "../core/slopes";
import { tensor } from "../core/tensor";
import {
  type Conversation,
  type Floats,
  type Party,
  type Round,
  again,
  cutGradient,
  feedback,
  feedbackSlopes,
  join,
  lossValue,
  receivedBoth,
  takeAgreed,
  upload,
} from "./party";
import type { Method } from "./plan";
import { lengthsOf } from "./runtime";

/** Activations up, λ down, slopes and exact gradients up, the cohort's down, and θ moves along them. */
async function* hoSfl(party: Party, round: Round): Conversation {
  const [theta, directions] = [party.theta, party.probe.directions];
  yield* join(theta, directions);
  for (let step = 0; step < round.steps; step += 1) {
    const said: Message = yield* measured(party, party.feed.next());
    takeAgreed(theta, yield said, directions);
  }
}

/** What a batch says of the direction in which θ should move. */
async function* measured(party: Party, batch: Batch): Conversation<Message> {
  const theta = party.theta;
  const [hidden, groups] = theta.exact.length ? await party.noting(batch) : [await party.forward(batch), []];
  const gradient = yield* feedback(party, batch, hidden);
  const cotangent = cotangentOf(batch, gradient, hidden);
  const exact = theta.exact.length ? await party.exact(groups, gradient) : null;
  const slopes = new Slopes(theta.position, await feedbackSlopes(party, batch, cotangent, theta.position));
  return exact === null ? slopes : new Both(slopes, new Exact(exact));
}

function cotangentOf(batch: Batch, gradient: Floats, hidden: Floats): Cotangent {
  return Cotangent.at(gradient, hidden, batch.inputs["lengths"] === undefined ? null : lengthsOf(batch.inputs));
}

/** A step's slopes travel with the next step's activations, and what is agreed on with its λ. */
async function* hoSflPipelined(party: Party, round: Round): Conversation {
  const [theta, directions] = [party.theta, party.probe.directions];
  yield* join(theta, directions);
  let said: Slopes | null = null; // of the step before
  const first = theta.position;
  for (let row = first; row < first + round.steps; row += 1) {
    const batch = party.feed.next();
    const hidden = await party.forward(batch);
    const [agreed, gradient]: [Slopes | null, Floats] = yield* lambdaFor(batch, hidden, said);
    const cotangent = cotangentOf(batch, gradient, hidden);
    said = new Slopes(row, await feedbackSlopes(party, batch, cotangent, row));
    // Behind the probes, which belong to the θ of the activations.
    if (agreed !== null) takeAgreed(theta, agreed, directions);
  }
  if (said !== null) takeAgreed(theta, yield said, directions);
}

/** λ for a batch, and what was agreed on of the slopes that go with its activations. */
async function* lambdaFor(batch: Batch, hidden: Floats, said: Slopes | null): Conversation<[Slopes | null, Floats]> {
  if (said === null) return [null, cutGradient(yield upload(batch, hidden), hidden.shape)];
  const [agreed, answer] = receivedBoth(yield new Both(said, upload(batch, hidden)), "Slopes", "CutGradient");
  return [agreed, cutGradient(answer, hidden.shape)];
}

/** Perturbed activations up, their losses down; clients take turns, each on slopes of its own. */
async function* hosl(party: Party, round: Round): Conversation {
  const theta = party.theta;
  yield* join(theta, party.probe.directions);
  for (let step = round.first; step < round.first + round.steps; step += 1) {
    const batch = party.feed.next();
    yield upload(batch, await party.forward(batch));
    const slopes = yield* throughLosses(party, batch);
    theta.replay(theta.position, { ...slopes, shape: [1, ...slopes.shape] }, [step]);
  }
}

/** Perturbed activations up, their losses down, slopes up, the cohort's down. */
async function* zoSfl(party: Party, round: Round): Conversation {
  const [theta, directions] = [party.theta, party.probe.directions];
  yield* join(theta, directions);
  for (let step = 0; step < round.steps; step += 1) {
    const batch = party.feed.next();
    yield upload(batch, await party.forward(batch));
    const slopes = yield* throughLosses(party, batch);
    takeAgreed(theta, yield new Slopes(theta.position, slopes), directions);
  }
}

/** (ℓ⁺ − ℓ⁻) / 2μ along each direction of the next row, (P,) float32; two uploads and two scalars each. */
async function* throughLosses(party: Party, batch: Batch): Conversation<Floats> {
  const [theta, measuredOnes] = [party.theta, party.theta.measured];
  const radius = party.probe.settled(measuredOnes).moved;
  const seeds = theta.seeds(party.probe.directions);
  const slopes = new Float32Array(seeds.length);
  for (let place = 0; place < seeds.length; place += 1) {
    const losses: number[] = [];
    for (const side of [radius, -radius]) {
      const weight = perturbed(theta.parameters, measuredOnes, seeds, place, side);
      losses.push(lossValue(yield again(await party.forward(batch, weight))));
    }
    slopes[place] = ((losses[0] as number) - (losses[1] as number)) / (2 * radius);
  }
  return tensor("float32", [slopes.length], slopes);
}

export const METHODS: Readonly<Record<Method, (party: Party, round: Round) => Conversation>> = {
  ho_sfl: hoSfl,
  ho_sfl_pipelined: hoSflPipelined,
  hosl,
  zo_sfl: zoSfl,
};
