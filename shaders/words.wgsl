// Ops on words: copy, and change of type. Bits go through as they are, so that none is lost on the way.

// copy: `halves` half words, from one place to another. One invocation per word of the result.
struct Copy {
    halves: u32,
    from_half: u32,
    to_half: u32,
}

// cast, the function `convert`: elements between float types, rounded to nearest even. An invocation has two of them: a
// word of the narrow types.
// Types: 0 f32, 1 f16, 2 bf16.
struct Cast {
    elements: u32,
    from_type: u32,
    to_type: u32,
}

var<immediate> copy_p: Copy;
var<immediate> cast_p: Cast;

@group(0) @binding(0) var<storage, read_write> out: array<u32>;
@group(0) @binding(1) var<storage, read_write> a: array<u32>;

fn half_at(i: u32) -> u32 {
    return (a[i >> 1u] >> ((i & 1u) * 16u)) & 0xffffu;
}

@compute @workgroup_size(64)
fn copy(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let word = (copy_p.to_half >> 1u) + id.x + id.y * groups.x * 64u;
    let end = copy_p.to_half + copy_p.halves;
    if 2u * word >= end {
        return;
    }
    let first = 2u * word >= copy_p.to_half;
    let second = 2u * word + 1u < end;
    // Below the first half this wraps around, and so does the difference.
    let source = copy_p.from_half + 2u * word - copy_p.to_half;
    if first && second {
        if (source & 1u) == 0u {
            out[word] = a[source >> 1u];
        } else {
            out[word] = half_at(source) | (half_at(source + 1u) << 16u);
        }
    } else if first {
        out[word] = (out[word] & 0xffff0000u) | half_at(source);
    } else {
        out[word] = (out[word] & 0xffffu) | (half_at(source + 1u) << 16u);
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
