// Ops that look at one place at a time: activate, add_channels, scale_add. One invocation for four elements.

// activate: out = activation(x); GEGLU is hidden * gelu(gate).
// x [rows, channels], or [rows, 2 channels] for GEGLU; out [rows, channels]
// Parameters: struct Activate in src/backend/params.rs, same order, then the activation.
struct Activate {
    rows: u32,
    channels: u32,
    activation: u32,
}

// add_channels: out = x + per_channel, the row that belongs to the image, or the only one.
// x, out [rows, channels]; per_channel [images, channels], row r being one of image (row_first + r) / rows_per_add
struct AddChannels {
    rows: u32,
    channels: u32,
    rows_per_add: u32,
    row_first: u32,
}

// scale_add: out = sum of scale * term, one fused chain in the order of the terms; f32 alone.
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

@group(0) @binding(2) var<storage, read_write> a: array<Four>;
@group(0) @binding(3) var<storage, read_write> b: array<Four>;
@group(0) @binding(4) var<storage, read_write> c: array<Four>;
@group(0) @binding(5) var<storage, read_write> d: array<Four>;
@group(0) @binding(6) var<storage, read_write> e: array<Four>;
@group(0) @binding(7) var<storage, read_write> f: array<Four>;

fn a_at(i: u32) -> f32 {
    return wide(a[i >> 2u])[i & 3u];
}

fn b_at(i: u32) -> f32 {
    return wide(b[i >> 2u])[i & 3u];
}

// Four elements of a from any place on.
fn a4(i: u32) -> vec4<f32> {
    if (i & 3u) == 0u {
        return wide(a[i >> 2u]);
    }
    return vec4(a_at(i), a_at(i + 1u), a_at(i + 2u), a_at(i + 3u));
}

fn b4(i: u32) -> vec4<f32> {
    if (i & 3u) == 0u {
        return wide(b[i >> 2u]);
    }
    return vec4(b_at(i), b_at(i + 1u), b_at(i + 2u), b_at(i + 3u));
}

@compute @workgroup_size(64)
fn activate(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = 4u * (id.x + id.y * groups.x * 64u);
    let elements = activate_p.rows * activate_p.channels;
    if i >= elements {
        return;
    }
    let count = min(4u, elements - i);
    let channels = activate_p.channels;
    var y: vec4<f32>;
    if activate_p.activation != 4u {
        y = activate4(activate_p.activation, a4(i));
    } else if (channels & 3u) == 0u {
        let at = i / channels * 2u * channels + i % channels;
        y = a4(at) * gelu4(a4(at + channels));
    } else {
        for (var j = 0u; j < count; j += 1u) {
            let at = (i + j) / channels * 2u * channels + (i + j) % channels;
            y[j] = a_at(at) * gelu4(vec4(a_at(at + channels))).x;
        }
    }
    put_some(i, y, count);
}

@compute @workgroup_size(64)
fn add_channels(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = 4u * (id.x + id.y * groups.x * 64u);
    let channels = add_channels_p.channels;
    let elements = add_channels_p.rows * channels;
    if i >= elements {
        return;
    }
    let count = min(4u, elements - i);
    var y: vec4<f32>;
    for (var j = 0u; j < count; j += 1u) {
        let row = (i + j) / channels;
        let image = (add_channels_p.row_first + row) / add_channels_p.rows_per_add;
        y[j] = a_at(i + j) + b_at(image * channels + (i + j) % channels);
    }
    put_some(i, y, count);
}

@compute @workgroup_size(64)
fn scale_add(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = 4u * (id.x + id.y * groups.x * 64u);
    if i >= scale_add_p.elements {
        return;
    }
    var sum = scale_add_p.scale0 * a4(scale_add_p.start0 + i);
    if scale_add_p.terms > 1u {
        sum = fma(vec4(scale_add_p.scale1), b4(scale_add_p.start1 + i), sum);
    }
    if scale_add_p.terms > 2u {
        let at = scale_add_p.start2 + i;
        let term = vec4(wide(c[at >> 2u])[at & 3u], wide(c[(at + 1u) >> 2u])[(at + 1u) & 3u],
            wide(c[(at + 2u) >> 2u])[(at + 2u) & 3u], wide(c[(at + 3u) >> 2u])[(at + 3u) & 3u]);
        sum = fma(vec4(scale_add_p.scale2), term, sum);
    }
    if scale_add_p.terms > 3u {
        let at = scale_add_p.start3 + i;
        let term = vec4(wide(d[at >> 2u])[at & 3u], wide(d[(at + 1u) >> 2u])[(at + 1u) & 3u],
            wide(d[(at + 2u) >> 2u])[(at + 2u) & 3u], wide(d[(at + 3u) >> 2u])[(at + 3u) & 3u]);
        sum = fma(vec4(scale_add_p.scale3), term, sum);
    }
    if scale_add_p.terms > 4u {
        let at = scale_add_p.start4 + i;
        let term = vec4(wide(e[at >> 2u])[at & 3u], wide(e[(at + 1u) >> 2u])[(at + 1u) & 3u],
            wide(e[(at + 2u) >> 2u])[(at + 2u) & 3u], wide(e[(at + 3u) >> 2u])[(at + 3u) & 3u]);
        sum = fma(vec4(scale_add_p.scale4), term, sum);
    }
    if scale_add_p.terms > 5u {
        let at = scale_add_p.start5 + i;
        let term = vec4(wide(f[at >> 2u])[at & 3u], wide(f[(at + 1u) >> 2u])[(at + 1u) & 3u],
            wide(f[(at + 2u) >> 2u])[(at + 2u) & 3u], wide(f[(at + 3u) >> 2u])[(at + 3u) & 3u]);
        sum = fma(vec4(scale_add_p.scale5), term, sum);
    }
    put_some(i, sum, min(4u, scale_add_p.elements - i));
}
