// Numbers in memory are f16; what is computed with them is f32.
enable f16;

alias Four = vec4<f16>;

// The result, four elements at a time, and the same one by one.
@group(0) @binding(0) var<storage, read_write> out: array<Four>;
@group(0) @binding(1) var<storage, read_write> each: array<f16>;

fn wide(x: Four) -> vec4<f32> {
    return vec4<f32>(x);
}

fn put4(i: u32, value: vec4<f32>) {
    out[i] = vec4<f16>(nearest_half(value));
}

fn put(i: u32, value: f32) {
    each[i] = f16(nearest_half(vec4(value)).x);
}
