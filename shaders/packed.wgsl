// Numbers in memory are f16, two in a word: for adapters without such a type. The same numbers as with f16.wgsl.

alias Four = vec2<u32>;

// The result, four elements at a time, and the same in words, which invocations may share.
@group(0) @binding(0) var<storage, read_write> out: array<Four>;
@group(0) @binding(1) var<storage, read_write> each: array<atomic<u32>>;

fn wide(x: Four) -> vec4<f32> {
    return vec4(unpack2x16float(x.x), unpack2x16float(x.y));
}

fn put4(i: u32, value: vec4<f32>) {
    let half = nearest_half(value);
    out[i] = vec2(pack2x16float(half.xy), pack2x16float(half.zw));
}

// Whoever writes the other half of the word meanwhile changes no bit of this one.
fn put(i: u32, value: f32) {
    let shift = (i & 1u) * 16u;
    atomicAnd(&each[i >> 1u], ~(0xffffu << shift));
    atomicOr(&each[i >> 1u], (pack2x16float(nearest_half(vec4(value)).xy) & 0xffffu) << shift);
}
