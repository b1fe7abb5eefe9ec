// Ops that move values as they are, and change of type: bits go through as words, so that none is lost on the way.

// embedding: out = table[id] + positions[token], for the ids that lie in the bound part of the table.
// ids [batch, tokens]; table [vocab, channels], rows first .. first + bound; positions [.., channels]; out [batch,
// tokens, channels]
// Parameters: struct Embedding in src/backend/params.rs, same order, then `first` and `bound`.
struct Embedding {
    batch: u32,
    tokens: u32,
    channels: u32,
    vocab: u32,
    first: u32,
    bound: u32,
}

// upsample2x: each output pixel is the input pixel floor(y * height / out_height), likewise for x, as PyTorch's
// nearest. x [batch, height, width, channels]; out [batch, out_height, out_width, channels]
// Parameters: struct Upsample in src/backend/params.rs, same order.
struct Upsample {
    batch: u32,
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
}

// concat_channels: out = [a, b] in each row. a [rows, left]; b [rows, right]; out [rows, left + right]
// Parameters: struct Concat in src/backend/params.rs, same order.
struct Concat {
    rows: u32,
    left: u32,
    right: u32,
}

// cast, the function `convert`: elements between float types, rounded to nearest even. An invocation has two of them: a
// word of the narrow types.
// Types: 0 f32, 1 f16, 2 bf16.
struct Cast {
    elements: u32,
    from_type: u32,
    to_type: u32,
}

// copy: words, from one place to another.
struct Copy {
    words: u32,
    from_word: u32,
    to_word: u32,
}

var<immediate> embedding_p: Embedding;
var<immediate> upsample_p: Upsample;
var<immediate> concat_p: Concat;
var<immediate> cast_p: Cast;
var<immediate> copy_p: Copy;

@group(0) @binding(0) var<storage, read_write> a: array<u32>;
@group(0) @binding(1) var<storage, read_write> b: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;
@group(0) @binding(3) var<storage, read> table: array<f32>;
@group(0) @binding(4) var<storage, read> positions: array<f32>;

@compute @workgroup_size(64)
fn embedding(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if i >= embedding_p.batch * embedding_p.tokens * embedding_p.channels {
        return;
    }
    let token = i / embedding_p.channels;
    // Below the first row this wraps around to a large number.
    let row = a[token] - embedding_p.first;
    if row < embedding_p.bound {
        let c = i % embedding_p.channels;
        let position = token % embedding_p.tokens;
        out[i] = bitcast<u32>(table[row * embedding_p.channels + c] + positions[position * embedding_p.channels + c]);
    }
}

@compute @workgroup_size(64)
fn upsample2x(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    let pixels = upsample_p.out_height * upsample_p.out_width;
    if i >= upsample_p.batch * pixels * upsample_p.channels {
        return;
    }
    let pixel = i / upsample_p.channels;
    let image = pixel / pixels;
    let y = pixel / upsample_p.out_width % upsample_p.out_height * upsample_p.height / upsample_p.out_height;
    let x = pixel % upsample_p.out_width * upsample_p.width / upsample_p.out_width;
    let line = image * upsample_p.height + y;
    out[i] = a[(line * upsample_p.width + x) * upsample_p.channels + i % upsample_p.channels];
}

@compute @workgroup_size(64)
fn concat_channels(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    let width = concat_p.left + concat_p.right;
    if i >= concat_p.rows * width {
        return;
    }
    let row = i / width;
    let c = i % width;
    if c < concat_p.left {
        out[i] = a[row * concat_p.left + c];
    } else {
        out[i] = b[row * concat_p.right + c - concat_p.left];
    }
}

@compute @workgroup_size(64)
fn copy(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    if i < copy_p.words {
        out[copy_p.to_word + i] = a[copy_p.from_word + i];
    }
}

// The bits of an f32 that is element i.
fn load(i: u32) -> u32 {
    if cast_p.from_type == 0u {
        return a[i];
    }
    let half = (a[i >> 1u] >> ((i & 1u) * 16u)) & 0xffffu;
    if cast_p.from_type == 2u {
        return half << 16u;
    }
    let sign = (half & 0x8000u) << 16u;
    let exponent = (half >> 10u) & 31u;
    let fraction = half & 0x3ffu;
    if exponent == 31u {
        return sign | 0x7f800000u | (fraction << 13u);
    }
    if exponent == 0u {
        if fraction == 0u {
            return sign;
        }
        // A subnormal has a leading one somewhere: its place gives the exponent.
        let place = firstLeadingBit(fraction);
        return sign | ((place + 103u) << 23u) | ((fraction << (23u - place)) & 0x7fffffu);
    }
    return sign | ((exponent + 112u) << 23u) | (fraction << 13u);
}

// `bits >> shift`, to nearest even.
fn rounded(bits: u32, shift: u32) -> u32 {
    let rest = bits & ((1u << shift) - 1u);
    let tie = 1u << (shift - 1u);
    let kept = bits >> shift;
    return kept + select(0u, 1u, rest > tie || (rest == tie && (kept & 1u) == 1u));
}

// The 16 bits that an f32 becomes.
fn narrow(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if cast_p.to_type == 2u {
        if size > 0x7f800000u {
            return (bits >> 16u) | 0x40u;
        }
        return sign | rounded(size, 16u);
    }
    if size > 0x7f800000u {
        return sign | 0x7e00u | ((size >> 13u) & 0x3ffu);
    }
    if size >= 0x47800000u {
        return sign | 0x7c00u;
    }
    if size >= 0x38800000u {
        return sign | rounded(size - 0x38000000u, 13u);
    }
    // A subnormal of f16, or zero.
    let exponent = size >> 23u;
    if exponent < 102u {
        return sign;
    }
    return sign | rounded((size & 0x7fffffu) | 0x800000u, 126u - exponent);
}

@compute @workgroup_size(64)
fn convert(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = 2u * (id.x + id.y * groups.x * 64u);
    if i >= cast_p.elements {
        return;
    }
    let both = i + 1u < cast_p.elements;
    let first = load(i);
    var second = 0u;
    if both {
        second = load(i + 1u);
    }
    if cast_p.to_type == 0u {
        out[i] = first;
        if both {
            out[i + 1u] = second;
        }
    } else if both {
        out[i >> 1u] = narrow(first) | (narrow(second) << 16u);
    } else {
        // The other half of the last word is no element: it stays.
        out[i >> 1u] = (out[i >> 1u] & 0xffff0000u) | narrow(first);
    }
}
