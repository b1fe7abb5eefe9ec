// What every shader has in front of it, behind one of f32, f16 and packed.wgsl, which say how numbers are stored, and one
// of alone and subgroup.wgsl, which say what invocations tell each other: functions of one element, the same chain of
// operations on every adapter.

const LOWEST = -3.4e38;

// Sixteen rows that a workgroup has in common are loaded by SHARE invocations: the first loads rows 0, SHARE, ... of them.
const HELD = 16u / SHARE;

// e^x, relative error below 3e-7; 0 below -87.3, and e^88 above 88.
fn exp4(x0: vec4<f32>) -> vec4<f32> {
    let x = clamp(x0, vec4(-87.3), vec4(88.0));
    let n = round(x * 1.442695);
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    var r = fma(n, vec4(-0.6933594), x);
    r = fma(n, vec4(2.1219444e-4), r);
    var p = vec4(1.984127e-4);
    p = fma(p, r, vec4(1.3888889e-3));
    p = fma(p, r, vec4(8.333333e-3));
    p = fma(p, r, vec4(4.1666668e-2));
    p = fma(p, r, vec4(0.16666667));
    p = fma(p, r, vec4(0.5));
    p = fma(p, r, vec4(1.0));
    p = fma(p, r, vec4(1.0));
    return p * bitcast<vec4<f32>>((vec4<i32>(n) + vec4(127)) << vec4(23u));
}

fn exp1(x: f32) -> f32 {
    return exp4(vec4(x)).x;
}

fn sigmoid4(x: vec4<f32>) -> vec4<f32> {
    return 1.0 / (1.0 + exp4(-x));
}

// x * Phi(x), erf with an absolute error below 5e-7. Abramowitz and Stegun 7.1.26.
fn gelu4(x: vec4<f32>) -> vec4<f32> {
    let z = x * 0.70710677;
    let t = 1.0 / fma(abs(z), vec4(0.3275911), vec4(1.0));
    var p = vec4(1.0614054);
    p = fma(p, t, vec4(-1.4531521));
    p = fma(p, t, vec4(1.4214138));
    p = fma(p, t, vec4(-0.28449674));
    p = fma(p, t, vec4(0.2548296));
    let erf = 1.0 - p * t * exp4(-z * z);
    return 0.5 * x * (1.0 + select(-erf, erf, x >= vec4(0.0)));
}

// As numbered in src/backend/wgpu/mod.rs: 0 none, 1 SiLU, 2 GELU, 3 quick GELU, 5 ReLU.
fn activate4(activation: u32, x: vec4<f32>) -> vec4<f32> {
    switch activation {
        case 1u: { return x * sigmoid4(x); }
        case 2u: { return gelu4(x); }
        case 3u: { return x * sigmoid4(1.702 * x); }
        case 5u: { return select(x, vec4(0.0), x < vec4(0.0)); }
        default: { return x; }
    }
}

// The nearest values that f16 has, ties to even: drivers may round their own as they like, but not what needs no
// rounding.
fn nearest_half(x: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(x);
    let size = bits & vec4(0x7fffffffu);
    let normal = bitcast<vec4<f32>>((bits + vec4(0xfffu) + ((bits >> vec4(13u)) & vec4(1u))) & vec4(0xffffe000u));
    let subnormal = round(x * 16777216.0) * 5.9604645e-8;
    let infinite = bitcast<vec4<f32>>((bits & vec4(0x80000000u)) | vec4(0x7f800000u));
    var y = select(normal, subnormal, size < vec4(0x38800000u));
    y = select(y, infinite, size >= vec4(0x477ff000u));
    return select(y, x, size > vec4(0x7f800000u));
}

// Up to four elements of the result from element i on.
fn put_some(i: u32, value: vec4<f32>, count: u32) {
    if count == 4u && (i & 3u) == 0u {
        put4(i >> 2u, value);
        return;
    }
    put(i, value.x);
    if count > 1u {
        put(i + 1u, value.y);
    }
    if count > 2u {
        put(i + 2u, value.z);
    }
    if count > 3u {
        put(i + 3u, value.w);
    }
}
