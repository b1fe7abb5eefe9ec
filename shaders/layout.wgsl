// Ops that move values: embedding, upsample2x, concat_channels. One invocation for four elements of the result.

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
// nearest. a [batch, height, width, channels], bound from line `line` of an image on; out [batch, out_height,
// out_width, channels], of which `rows` pixels from pixel `row_first` of the image on are made.
// Parameters: struct Upsample in src/backend/params.rs, same order, then what is said here.
struct Upsample {
    batch: u32,
    height: u32,
    width: u32,
    channels: u32,
    out_height: u32,
    out_width: u32,
    rows: u32,
    row_first: u32,
    line: u32,
    a_first: u32,
    out_first: u32,
}

// concat_channels: out = [a, b] in each row. a [rows, left]; b [rows, right]; out [rows, left + right]
// Parameters: struct Concat in src/backend/params.rs, same order.
struct Concat {
    rows: u32,
    left: u32,
    right: u32,
}

var<immediate> embedding_p: Embedding;
var<immediate> upsample_p: Upsample;
var<immediate> concat_p: Concat;

@group(0) @binding(2) var<storage, read_write> a: array<Four>;
@group(0) @binding(3) var<storage, read_write> b: array<Four>;
@group(0) @binding(4) var<storage, read_write> ids: array<u32>;
@group(0) @binding(5) var<storage, read> table: array<Four>;
@group(0) @binding(6) var<storage, read> positions: array<Four>;

fn a_at(i: u32) -> f32 {
    return wide(a[i >> 2u])[i & 3u];
}

fn b_at(i: u32) -> f32 {
    return wide(b[i >> 2u])[i & 3u];
}

// Rows of a table begin in the middle of a word where channels are odd: such a word is written by two invocations.
@compute @workgroup_size(64)
fn embedding(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = id.x + id.y * groups.x * 64u;
    let channels = embedding_p.channels;
    if i >= embedding_p.batch * embedding_p.tokens * channels {
        return;
    }
    let token = i / channels;
    // Below the first row this wraps around to a large number.
    let row = ids[token] - embedding_p.first;
    if row < embedding_p.bound {
        let place = row * channels + i % channels;
        let at = token % embedding_p.tokens * channels + i % channels;
        put(i, wide(table[place >> 2u])[place & 3u] + wide(positions[at >> 2u])[at & 3u]);
    }
}

@compute @workgroup_size(64)
fn upsample2x(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = 4u * (id.x + id.y * groups.x * 64u);
    let channels = upsample_p.channels;
    let elements = upsample_p.rows * channels;
    if i >= elements {
        return;
    }
    let count = min(4u, elements - i);
    let out_pixels = upsample_p.out_height * upsample_p.out_width;
    var y: vec4<f32>;
    for (var j = 0u; j < count; j += 1u) {
        // A run of four within one pixel is read at once.
        let pixel = upsample_p.row_first + (i + j) / channels;
        let image = pixel / out_pixels;
        let line = pixel / upsample_p.out_width % upsample_p.out_height * upsample_p.height / upsample_p.out_height;
        let x = pixel % upsample_p.out_width * upsample_p.width / upsample_p.out_width;
        let row = (image * upsample_p.height + line - upsample_p.line) * upsample_p.width + x;
        let at = upsample_p.a_first + row * channels + (i + j) % channels;
        if (channels & 3u) == 0u && ((upsample_p.a_first | upsample_p.out_first) & 3u) == 0u {
            y = wide(a[at >> 2u]);
            break;
        }
        y[j] = a_at(at);
    }
    put_some(upsample_p.out_first + i, y, count);
}

@compute @workgroup_size(64)
fn concat_channels(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let i = 4u * (id.x + id.y * groups.x * 64u);
    let left = concat_p.left;
    let right = concat_p.right;
    let width = left + right;
    let elements = concat_p.rows * width;
    if i >= elements {
        return;
    }
    let count = min(4u, elements - i);
    var y: vec4<f32>;
    if ((left | right) & 3u) == 0u {
        // Four of one row and of one side.
        let c = i % width;
        let row = i / width;
        if c < left {
            y = wide(a[(row * left + c) >> 2u]);
        } else {
            y = wide(b[(row * right + c - left) >> 2u]);
        }
    } else {
        for (var j = 0u; j < count; j += 1u) {
            let c = (i + j) % width;
            let row = (i + j) / width;
            if c < left {
                y[j] = a_at(row * left + c);
            } else {
                y[j] = b_at(row * right + c - left);
            }
        }
    }
    put_some(i, y, count);
}
