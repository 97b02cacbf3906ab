/**
 * Arrays with a dtype and a shape, as messages carry them: contiguous, in row-major order.
 *
 * JavaScript's typed arrays have the machine's byte order, which is little-endian wherever a browser runs, as the wire
 * is. bfloat16 and float16 are the bits of their values; bool is a byte each.
 */

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
} as const;

export type Dtype = keyof typeof ARRAYS;
/** The typed array that holds values of a dtype. */
export type Data<D extends Dtype> = InstanceType<(typeof ARRAYS)[D]>;
export type Shape = readonly number[];

/** `Tensor` is of any dtype, and its `dtype` tells which `data` it has; `Tensor<"float32">` is of this one. */
export type Tensor<D extends Dtype = Dtype> = {
  [K in D]: { readonly dtype: K; readonly shape: Shape; readonly data: Data<K> };
}[D];

/** Values of a shape, which has as many; RangeError if it hasn't. */
export function tensor<D extends Dtype>(dtype: D, shape: Shape, data: Data<D>): Tensor<D> {
  if (sizeOf(shape) !== data.length) {
    throw new RangeError(`a tensor of shape ${shown(shape)} has ${sizeOf(shape)} values, not ${data.length}`);
  }
  return { dtype, shape, data } as unknown as Tensor<D>;
}

/** Zeros. */
export function zeros<D extends Dtype>(dtype: D, shape: Shape): Tensor<D> {
  return { dtype, shape, data: new ARRAYS[dtype](sizeOf(shape)) } as unknown as Tensor<D>;
}

/** The tensor whose little-endian bytes fill this buffer. */
export function ofBytes<D extends Dtype>(dtype: D, shape: Shape, buffer: ArrayBuffer): Tensor<D> {
  return tensor(dtype, shape, new ARRAYS[dtype](buffer) as Data<D>);
}

/** A tensor's bytes, as a view. */
export function bytesOf(values: Tensor): Uint8Array {
  const { buffer, byteOffset, byteLength } = values.data;
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** The same values in another shape, which has as many; they are not copied. */
export function reshaped<D extends Dtype>(values: Tensor<D>, shape: Shape): Tensor<D> {
  return tensor(values.dtype, shape, values.data as Data<D>) as Tensor<D>;
}

/** Rows `start` to `stop` of a tensor along its first dimension, as a view. */
export function rowsOf<D extends Dtype>(values: Tensor<D>, start: number, stop: number): Tensor<D> {
  const shape = [stop - start, ...values.shape.slice(1)];
  const width = sizeOf(shape.slice(1));
  return tensor(values.dtype, shape, values.data.subarray(start * width, stop * width) as Data<D>) as Tensor<D>;
}

/** Bytes of a value. */
export function bytesEach(dtype: Dtype): number {
  return ARRAYS[dtype].BYTES_PER_ELEMENT;
}

/** Values of a shape. */
export function sizeOf(shape: Shape): number {
  return shape.reduce((product, length) => product * length, 1);
}

/** Whether two shapes are the same. */
export function sameShape(one: Shape, other: Shape): boolean {
  return one.length === other.length && one.every((length, place) => length === other[place]);
}

/** A shape as it stands in an error and in a digest of weights: `(3, 5)`, `(7,)` or `()`. */
export function shown(shape: Shape): string {
  return shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(", ")})`;
}

/** Dtype and shape, as they stand in an error. */
export function described(values: Tensor): string {
  return `${values.dtype} ${shown(values.shape)}`;
}
