// Numbers in memory are f32.

alias Four = vec4<f32>;

// The result, four elements at a time, and the same one by one.
@group(0) @binding(0) var<storage, read_write> out: array<Four>;
@group(0) @binding(1) var<storage, read_write> each: array<f32>;

fn wide(x: Four) -> vec4<f32> {
    return x;
}

fn put4(i: u32, value: vec4<f32>) {
    out[i] = value;
}

fn put(i: u32, value: f32) {
    each[i] = value;
}
