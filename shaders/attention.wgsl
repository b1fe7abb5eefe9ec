// attention: out = softmax(scale * q k^T) v for each image and head, online. Milakov and Gimelshein 2018; Dao et al.
// 2022. q, out [batch, queries, heads * head_dim]; k, v [batch, keys, heads * head_dim]
// One workgroup per 16 queries of one image and head; it looks at 64 keys at a time, one per invocation for the scores,
// then four channels of some of the queries per invocation for the sums. Blocks of keys begin at multiples of 64.
// Parameters: struct Attention in src/backend/params.rs, same order.

struct Attention {
    batch: u32,
    queries: u32,
    keys: u32,
    heads: u32,
    head_dim: u32,
    causal: u32,
    scale: f32,
}
var<immediate> p: Attention;

// Channels of a head, in fours; whether they are whole ones; invocations that share a query; whether they go twice.
override D4: u32 = 10u;
override WHOLE: bool = false;
override LANES: u32 = 16u;
override TWICE: bool = false;

const QUERIES = 16u;
const KEYS = 64u;

@group(0) @binding(0) var<storage, read_write> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

var<workgroup> scores: array<f32, 1024>;
var<workgroup> largest: array<f32, 16>;
var<workgroup> total: array<f32, 16>;
var<workgroup> factor: array<f32, 16>;

fn q4(base: u32, d: u32) -> vec4<f32> {
    if WHOLE {
        return q[(base >> 2u) + d];
    }
    var value = vec4<f32>();
    for (var j = 0u; j < min(4u, p.head_dim - 4u * d); j += 1u) {
        let i = base + 4u * d + j;
        value[j] = q[i >> 2u][i & 3u];
    }
    return value;
}

fn k4(base: u32, d: u32) -> vec4<f32> {
    if WHOLE {
        return k[(base >> 2u) + d];
    }
    var value = vec4<f32>();
    for (var j = 0u; j < min(4u, p.head_dim - 4u * d); j += 1u) {
        let i = base + 4u * d + j;
        value[j] = k[i >> 2u][i & 3u];
    }
    return value;
}

fn v4(base: u32, d: u32) -> vec4<f32> {
    if WHOLE {
        return v[(base >> 2u) + d];
    }
    var value = vec4<f32>();
    for (var j = 0u; j < min(4u, p.head_dim - 4u * d); j += 1u) {
        let i = base + 4u * d + j;
        value[j] = v[i >> 2u][i & 3u];
    }
    return value;
}

fn store(at: u32, d: u32, value: vec4<f32>) {
    for (var j = 0u; j < min(4u, p.head_dim - 4u * d); j += 1u) {
        out[at + 4u * d + j] = value[j];
    }
}

@compute @workgroup_size(64)
fn attention(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let image = group.y / p.heads;
    let offset = (group.y % p.heads) * p.head_dim;
    let width = p.heads * p.head_dim;
    let first = group.x * QUERIES;
    let end = select(p.keys, min(p.keys, first + QUERIES), p.causal == 1u);
    let lane = t % LANES;
    let each = QUERIES * LANES / KEYS;
    let mine = t / LANES * each;
    var acc: array<vec4<f32>, 16>;
    var more: array<vec4<f32>, 16>;
    for (var i = 0u; i < QUERIES; i += 1u) {
        acc[i] = vec4(0.0);
        more[i] = vec4(0.0);
    }
    if t < QUERIES {
        largest[t] = LOWEST;
        total[t] = 0.0;
    }
    for (var block = 0u; block < end; block += KEYS) {
        // Scores: one key per invocation.
        let key = block + t;
        let base = (image * p.keys + min(key, p.keys - 1u)) * width + offset;
        var sums: array<f32, 16>;
        for (var i = 0u; i < QUERIES; i += 1u) {
            sums[i] = 0.0;
        }
        for (var d = 0u; d < D4; d += 1u) {
            let b = k4(base, d);
            for (var i = 0u; i < QUERIES; i += 1u) {
                let a = q4((image * p.queries + min(first + i, p.queries - 1u)) * width + offset, d);
                sums[i] = fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sums[i]))));
            }
        }
        for (var i = 0u; i < QUERIES; i += 1u) {
            let seen = key < p.keys && (p.causal == 0u || key <= first + i);
            scores[i * KEYS + t] = select(LOWEST, sums[i] * p.scale, seen);
        }
        workgroupBarrier();
        if t < QUERIES {
            var most = largest[t];
            for (var j = 0u; j < KEYS; j += 1u) {
                most = max(most, scores[t * KEYS + j]);
            }
            factor[t] = exp1(largest[t] - most);
            largest[t] = most;
        }
        workgroupBarrier();
        // Weights against the largest score so far; what is not seen weighs exactly nothing.
        for (var i = 0u; i < QUERIES; i += 4u) {
            let at = i * KEYS + t;
            let s = vec4(scores[at], scores[at + KEYS], scores[at + 2u * KEYS], scores[at + 3u * KEYS]);
            let m = vec4(largest[i], largest[i + 1u], largest[i + 2u], largest[i + 3u]);
            let e = select(exp4(s - m), vec4(0.0), s == vec4(LOWEST));
            scores[at] = e.x;
            scores[at + KEYS] = e.y;
            scores[at + 2u * KEYS] = e.z;
            scores[at + 3u * KEYS] = e.w;
        }
        workgroupBarrier();
        if t < QUERIES {
            var sum = 0.0;
            for (var j = 0u; j < KEYS; j += 1u) {
                sum += scores[t * KEYS + j];
            }
            total[t] = fma(total[t], factor[t], sum);
        }
        // Sums: four channels per invocation.
        if lane < D4 {
            for (var i = 0u; i < each; i += 1u) {
                acc[i] *= factor[mine + i];
                more[i] *= factor[mine + i];
            }
            let count = min(KEYS, end - block);
            for (var j = 0u; j < count; j += 1u) {
                let base = (image * p.keys + block + j) * width + offset;
                let b = v4(base, lane);
                for (var i = 0u; i < each; i += 1u) {
                    acc[i] = fma(vec4(scores[(mine + i) * KEYS + j]), b, acc[i]);
                }
                if TWICE && lane + LANES < D4 {
                    let c = v4(base, lane + LANES);
                    for (var i = 0u; i < each; i += 1u) {
                        more[i] = fma(vec4(scores[(mine + i) * KEYS + j]), c, more[i]);
                    }
                }
            }
        }
        workgroupBarrier();
    }
    if lane < D4 {
        for (var i = 0u; i < each; i += 1u) {
            let query = first + mine + i;
            if query < p.queries {
                let at = (image * p.queries + query) * width + offset;
                store(at, lane, acc[i] / total[mine + i]);
                if TWICE && lane + LANES < D4 {
                    store(at, lane + LANES, more[i] / total[mine + i]);
                }
            }
        }
    }
}
