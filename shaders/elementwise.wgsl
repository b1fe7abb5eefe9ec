// Ops that look at one place at a time: activate, add_channels, scale_add. One invocation per element.

// activate: out = activation(x); GEGLU is hidden * gelu(gate).
// x [rows, channels], or [rows, 2 channels] for GEGLU; out [rows, channels]
// Parameters: struct Activate in src/backend/params.rs, same order, then the activation.
struct Activate {
    rows: u32,
    channels: u32,
    activation: u32,
}

// add_channels: out = x + per_channel, the row that belongs to the image, or the only one.
// x, out [batch, pixels, channels]; per_channel [batch or 1, channels]
// Parameters: struct AddChannels in src/backend/params.rs, same order.
struct AddChannels {
    batch: u32,
    pixels: u32,
    channels: u32,
    per_channel_rows: u32,
}

// scale_add: out = sum of scale * term, one fused chain in the order of the terms.
// Parameters: struct ScaleAdd in src/backend/params.rs, then the number of terms, their factors and where they begin.
struct ScaleAdd {
    elements: u32,
    terms: u32,
    scale0: f32,
    scale1: f32,
    scale2: f32,
    scale3: f32,
    scale4: f32,
    scale5: f32,
    start0: u32,
    start1: u32,
    start2: u32,
    start3: u32,
    start4: u32,
    start5: u32,
}

var<immediate> activate_p: Activate;
var<immediate> add_channels_p: AddChannels;
var<immediate> scale_add_p: ScaleAdd;

@group(0) @binding(0) var<storage, read_write> a: array<f32>;
@group(0) @binding(1) var<storage, read_write> b: array<f32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(0) @binding(3) var<storage, read_write> d: array<f32>;
@group(0) @binding(4) var<storage, read_write> e: array<f32>;
@group(0) @binding(5) var<storage, read_write> f: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn activate(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if i >= activate_p.rows * activate_p.channels {
        return;
    }
    if activate_p.activation == 4u {
        let at = i / activate_p.channels * 2u * activate_p.channels + i % activate_p.channels;
        out[i] = a[at] * gelu4(vec4(a[at + activate_p.channels])).x;
    } else {
        out[i] = activate4(activate_p.activation, vec4(a[i])).x;
    }
}

@compute @workgroup_size(64)
fn add_channels(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    let size = add_channels_p.pixels * add_channels_p.channels;
    if i >= add_channels_p.batch * size {
        return;
    }
    let row = select(i / size, 0u, add_channels_p.per_channel_rows == 1u);
    out[i] = a[i] + b[row * add_channels_p.channels + i % add_channels_p.channels];
}

@compute @workgroup_size(64)
fn scale_add(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if i >= scale_add_p.elements {
        return;
    }
    var sum = scale_add_p.scale0 * a[scale_add_p.start0 + i];
    if scale_add_p.terms > 1u {
        sum = fma(scale_add_p.scale1, b[scale_add_p.start1 + i], sum);
    }
    if scale_add_p.terms > 2u {
        sum = fma(scale_add_p.scale2, c[scale_add_p.start2 + i], sum);
    }
    if scale_add_p.terms > 3u {
        sum = fma(scale_add_p.scale3, d[scale_add_p.start3 + i], sum);
    }
    if scale_add_p.terms > 4u {
        sum = fma(scale_add_p.scale4, e[scale_add_p.start4 + i], sum);
    }
    if scale_add_p.terms > 5u {
        sum = fma(scale_add_p.scale5, f[scale_add_p.start5 + i], sum);
    }
    out[i] = sum;
}
