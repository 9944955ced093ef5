"""The Triton kernels of inhibitor attention: the sum over the values, the forward pass, and the two backward passes.

No tensor core computes a Manhattan distance, so a kernel's time is the number of instructions it issues for one
(query, key, channel) triple. Tiles have five dimensions, [R, C, W, A, T], and the order of the dimensions is the layout:
a row (a query, or in the column pass a key) is shared by T lanes, which hold C of its channels each; A · T lanes make a
warp and W warps a program; each lane holds R rows. The innermost loop runs over single keys (or queries), whose channels
every row of the program reuses. The big tiles are loaded and stored with a stride the compiler does not know to be 1: it
would else choose a layout that is good for these few accesses and bad for the loop.
"""

from .inhibitor_forms import NOTHING_PASSES

try:  # transformers refuses a checkpoint whose files import what is not installed, except within `try`
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the Triton kernels of inhibitor attention need the package triton") from error

# Multiplies differences into indicators: a difference of one unit in the last place of a float beyond 1e-17 exceeds 1 with
# it, and no score below 1e14 overflows.
_BIG = tl.constexpr(2.0**80)
# By default the last dimension of a tile is the one whose neighbours lie in neighbouring lanes; before Triton 3.7 it was the
# first one, and the dimensions are in the opposite order: [T, A, W, C, R] wherever a comment says [R, C, W, A, T].
_MIRRORED = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7))
_NOTHING_PASSES = tl.constexpr(NOTHING_PASSES)
# A place no query looks as far as.
_NEVER = tl.constexpr(2**31 - 1)


@triton.jit
def _rows(block, R: tl.constexpr, W: tl.constexpr, A: tl.constexpr, T: tl.constexpr):
    """The row numbers of a program's tile, [R, 1, W, A, T], the same for the T lanes that share a row."""
    row, warp, lane = tl.arange(0, R) * (W * A), tl.arange(0, W) * A, block * (R * W * A) + tl.arange(0, A)
    if _MIRRORED:
        o_row = row[None, None, None, None, :] + warp[None, None, :, None, None] + lane[None, :, None, None, None]
        return tl.broadcast_to(o_row, [T, A, W, 1, R])
    else:
        o_row = row[:, None, None, None, None] + warp[None, None, :, None, None] + lane[None, None, None, :, None]
        return tl.broadcast_to(o_row, [R, 1, W, A, T])


@triton.jit
def _columns(C: tl.constexpr, T: tl.constexpr):
    """The channel numbers of a tile, [1, C, 1, 1, T]."""
    first, channel = tl.arange(0, T) * C, tl.arange(0, C)
    if _MIRRORED:
        return first[:, None, None, None, None] + channel[None, None, None, :, None]
    else:
        return first[None, None, None, None, :] + channel[None, :, None, None, None]


@triton.jit
def _first_lane(T: tl.constexpr):
    """The lane that stores what the T lanes of a row share, [1, 1, 1, 1, T]."""
    if _MIRRORED:
        return tl.arange(0, T)[:, None, None, None, None] == 0
    else:
        return tl.arange(0, T)[None, None, None, None, :] == 0


@triton.jit
def _full(R: tl.constexpr, C: tl.constexpr, W: tl.constexpr, A: tl.constexpr, T: tl.constexpr, value, dtype: tl.constexpr):
    """A tile [R, C, W, A, T] of one value."""
    if _MIRRORED:
        return tl.full([T, A, W, C, R], value, dtype)
    else:
        return tl.full([R, C, W, A, T], value, dtype)


@triton.jit
def _channel_sum(x):
    """Sum over the channels that a lane holds: [R, C, W, A, T] -> [R, 1, W, A, T]."""
    return tl.sum(x, 3 if _MIRRORED else 1, keep_dims=True)


@triton.jit
def _row_sum(x):
    """Sum over all channels: [R, C, W, A, T] -> [R, 1, W, A, T], the same for the T lanes that share a row."""
    x = _channel_sum(x)
    return tl.broadcast_to(tl.sum(x, 0 if _MIRRORED else 4, keep_dims=True), x.shape)


@triton.jit
def _load_row(pointer, m_columns, D: tl.constexpr, C: tl.constexpr, T: tl.constexpr):
    """One row that all rows of the tile share, [1, C, 1, 1, T], in float32; 0 in the columns that pad the head size."""
    if D == C * T:
        return tl.load(pointer).to(tl.float32)
    return tl.load(pointer, mask=m_columns, other=0.0).to(tl.float32)


@triton.jit
def _relu(x):
    """NaN stays NaN, which it does not in tl.maximum by itself."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _clamp(v, z, GATE: tl.constexpr, XORSIGN: tl.constexpr):
    """clamp(v, -z, z) for z >= 0, where NaN counts as infinity; one instruction from sm_86 on.

    With GATE z has any sign, and the result its sign as a factor.
    """
    if XORSIGN:
        return tl.inline_asm_elementwise(
            "min.xorsign.abs.f32 $0, $1, $2;", "=f,f,f", [v, z], dtype=tl.float32, is_pure=True, pack=1
        )
    if GATE:
        return _clamp(v, tl.abs(z), False, False) * _with_sign_of(tl.full(z.shape, 1.0, tl.float32), z)
    return tl.minimum(tl.maximum(v, -z), z)


@triton.jit
def _saturate(x):
    """clamp(x, 0, 1), and 0 for nan: part of the multiply-add before it on every GPU."""
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _exceeds(v, z):
    """[v > z] as 0 or 1."""
    return _saturate(v * _BIG - z * _BIG)


@triton.jit
def _half_step(x):
    """(1 + sign(x)) / 2: 0, one half at an exact 0, or 1."""
    return _saturate(x * _BIG + 0.5)


@triton.jit
def _with_sign_of(x, sign):
    """x times the sign of `sign`, where -0 and 0 count as the sign bit says."""
    bits = sign.to(tl.int32, bitcast=True) & -2147483648
    return (x.to(tl.int32, bitcast=True) ^ bits).to(tl.float32, bitcast=True)


@triton.jit
def _opaque(j, ASM: tl.constexpr):
    """j, which LLVM would else widen to 64 bits, together with every comparison and increment of the loop."""
    if ASM:
        return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [j], dtype=tl.int32, is_pure=True, pack=1)
    return j


@triton.jit
def _any_seen(padding, j0, stop, stride, BLOCK: tl.constexpr):
    """Whether a block of keys holds a real one."""
    o_j = j0 + tl.arange(0, BLOCK)
    return tl.max(tl.load(padding + o_j * stride, mask=o_j < stop, other=0).to(tl.int32), 0) > 0


@triton.jit
def _place(place, j, mask, stride, MASKED: tl.constexpr):
    """`place` where the mask keeps key j, else one after every query's last key."""
    if MASKED:
        return tl.where(tl.load(mask + j * stride) != 0, place, _NEVER)
    return place


@triton.jit
def _where_seen(j, last, x, other, CAUSAL: tl.constexpr, MASKED: tl.constexpr):
    """x where the key at place j is seen by a row whose last one is `last`, else `other`."""
    if CAUSAL:
        return tl.where(j <= last, x, other)
    elif MASKED:
        return tl.where(j < _NEVER, x, other)
    else:
        return x


@triton.jit
def _center_distance(
    b_q, p_k, p_padding, stop, last, m_d, s_kn, s_pn,
    D: tl.constexpr, R: tl.constexpr, C: tl.constexpr, W: tl.constexpr, A: tl.constexpr, T: tl.constexpr,
    BLOCK: tl.constexpr, LEAST: tl.constexpr, CAUSAL: tl.constexpr, PADDED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """Of the distances of each row to the keys it sees the mean, 0 for a row that sees none, and 0; or with LEAST the least,
    infinite there, and the first key that has it, [R, 1, W, A, T]. NaN is least of all, but that key is not found."""
    b_center = _full(R, 1, W, A, T, float("inf") if LEAST else 0.0, tl.float32)
    b_nearest = _full(R, 1, W, A, T, 0, tl.int32)
    b_count = _full(R, 1, W, A, T, 0.0, tl.float32)
    for j0 in range(0, stop, BLOCK):
        some = True
        if PADDED:
            some = _any_seen(p_padding, j0, stop, s_pn, BLOCK)
        if some:
            for i in range(j0, tl.minimum(j0 + BLOCK, stop)):
                j = _opaque(i, ASM)
                distance = _channel_sum(tl.abs(b_q - _load_row(p_k + j * s_kn, m_d, D, C, T)))
                place = _place(j, j, p_padding, s_pn, PADDED)
                if LEAST:
                    distance = _where_seen(place, last, _row_sum(distance), float("inf"), CAUSAL, PADDED)
                    b_nearest = tl.where(distance < b_center, j, b_nearest)
                    b_center = tl.minimum(b_center, distance, propagate_nan=tl.PropagateNan.ALL)
                else:
                    b_center += _where_seen(place, last, distance, 0.0, CAUSAL, PADDED)
                    if CAUSAL or PADDED:
                        b_count += _where_seen(place, last, _full(1, 1, 1, 1, T, 1.0, tl.float32), 0.0, CAUSAL, PADDED)
    if not LEAST:
        b_center = _row_sum(b_center)
        if CAUSAL or PADDED:
            b_center = b_center / tl.maximum(b_count, 1.0)
        else:
            b_center = b_center / stop
    return b_center, b_nearest


@triton.jit
def _score(distance, b_center, scale, shift, LEAST: tl.constexpr):
    """The score of a distance; where `shift` does not hold it, what it is centred by is taken off first, exactly."""
    if LEAST:
        distance = distance - b_center
    return distance * scale + shift


@triton.jit
def _opening(z, delta, GATE: tl.constexpr):
    """How much of a constant value of 1 / delta passes, as a share; NaN stays NaN."""
    if GATE:
        return tl.minimum(_relu(0.5 - delta * z), 1.0, propagate_nan=tl.PropagateNan.ALL)
    return _relu(1.0 - delta * z)


@triton.jit
def _opens(s, delta, GATE: tl.constexpr):
    """Whether that share moves with the score s."""
    if GATE:
        return tl.abs(delta * s) <= 0.5
    return (1.0 - delta * s > 0) & (s > 0)


@triton.jit(do_not_specialize=["H", "N", "tiles"])
def _value_sum_kernel(
    v, padding, dropout, total, wanted,
    H, N, tiles, s_vb, s_vh, s_vn, s_vd, s_pb, s_pn, s_db, s_dn,
    D: tl.constexpr, COLUMNS: tl.constexpr, SIGNED: tl.constexpr, CAUSAL: tl.constexpr, PADDED: tl.constexpr,
    DROPPED: tl.constexpr, CHOSEN: tl.constexpr,
):  # fmt: skip
    """Sum of the values that count, float32: total (B, H, D), or with CAUSAL all running sums, (B, H, N, D).

    Where not signed, it sums positive parts. Key by key, as the forward kernel subtracts: where everything is inhibited the
    two cancel exactly. With CHOSEN only for the heads of which `wanted` marks one of the `tiles`.
    """
    pid = tl.program_id(0).to(tl.int64)
    if CHOSEN:
        marked = 0
        for tile in range(0, tiles):
            marked += tl.load(wanted + pid * tiles + tile)
        if marked == 0:
            return
    b, h = pid // H, pid % H
    o_d = tl.arange(0, COLUMNS)
    m_d = o_d < D
    p_v = v + b * s_vb + h * s_vh + o_d * s_vd
    p_total = total + pid * D * (N if CAUSAL else 1) + o_d
    b_sum = tl.zeros([COLUMNS], tl.float32)
    for j in range(0, N):
        place = _place(_place(j, j, padding + b * s_pb, s_pn, PADDED), j, dropout + b * s_db, s_dn, DROPPED)
        counts = o_d < tl.where(place < _NEVER, D, 0)
        b_v = tl.load(p_v + j * s_vn, mask=counts, other=0.0).to(tl.float32)
        b_sum += b_v if SIGNED else _relu(b_v)
        if CAUSAL:
            tl.store(p_total + j * D, b_sum, mask=m_d)
    if not CAUSAL:
        tl.store(p_total, b_sum, mask=m_d)


@triton.jit(do_not_specialize=["H", "M", "N", "s_row", "s_qd", "s_od"])
def _forward_kernel(
    q, k, v, padding, dropout, alpha, beta, gamma, delta, total, out, center, nearest, opened, wanted,
    H, M, N, root, s_alpha, s_beta, s_gamma, s_delta, s_row,
    s_qb, s_qh, s_qm, s_qd, s_kb, s_kh, s_kn, s_kd, s_vb, s_vh, s_vn, s_vd,
    s_ob, s_oh, s_om, s_od, s_pb, s_pn, s_db, s_dn,
    D: tl.constexpr, R: tl.constexpr, C: tl.constexpr, W: tl.constexpr, A: tl.constexpr, T: tl.constexpr,
    BLOCK: tl.constexpr, SIGNED: tl.constexpr, GATE: tl.constexpr, MEAN: tl.constexpr, LEAST: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, DROPPED: tl.constexpr, CHOSEN: tl.constexpr, ASM: tl.constexpr,
    XORSIGN: tl.constexpr,
):  # fmt: skip
    """out = beta · sum of the values that pass the scores, divided by opened where there is a delta; center: what each row's
    distances are centred by, where they are; nearest: with LEAST which key's it is.

    What passes is the sum of the values less that of their clamped parts; unsigned inhibition is the signed one of the
    positive parts, and a gate clamps half values, or whole ones by twice the scores. The sum of the values holds what is not
    finite of them, and b_top, or what they are divided by, whether a score is NaN. With CHOSEN only the programs that
    `wanted` marks do anything.
    """
    blocks = tl.cdiv(M, R * W * A)
    pid = tl.program_id(0)
    if CHOSEN and tl.load(wanted + pid) == 0:
        return
    bh = (pid // blocks).to(tl.int64)
    b, h = bh // H, bh % H
    o_m = _rows(pid % blocks, R, W, A, T)
    o_d = _columns(C, T)
    m_m, m_d = o_m < M, o_d < D
    m_first = m_m & _first_lane(T)
    m_q = m_m & m_d
    p_k, p_v = k + b * s_kb + h * s_kh + o_d * s_kd, v + b * s_vb + h * s_vh + o_d * s_vd
    p_padding, p_dropout = padding + b * s_pb, dropout + b * s_db
    last = o_m + (N - M)  # with CAUSAL the last key a row sees
    stop = N
    if CAUSAL:
        stop = tl.minimum(N, tl.maximum(tl.max(last), -1) + 1)

    b_q = tl.load(q + b * s_qb + h * s_qh + o_m * s_qm + o_d * s_qd, mask=m_q, other=0.0).to(tl.float32)
    b_alpha, b_beta = tl.load(alpha + h * s_alpha), tl.load(beta + h * s_beta)
    scale = tl.load(gamma + h * s_gamma) * root
    if GATE:
        b_alpha, b_beta, scale = 2 * b_alpha, b_beta / 2, 2 * scale
    shift = _full(R, 1, W, A, T, 0.0, tl.float32) + b_alpha
    b_center = 0.0
    if MEAN or LEAST:
        b_center, b_nearest = _center_distance(
            b_q, p_k, p_padding, stop, last, m_d, s_kn, s_pn, D, R, C, W, A, T, BLOCK, LEAST, CAUSAL, PADDED, ASM
        )  # fmt: skip
        tl.store(center + bh * M + o_m * s_row, b_center, mask=m_first)
        if LEAST:
            tl.store(nearest + bh * M + o_m * s_row, b_nearest, mask=m_first)
            shift += 0.0 * scale  # no infinite scale has a centred score
        else:
            shift = shift - scale * b_center
    if delta is not None:
        b_delta = tl.load(delta + h * s_delta)
        if GATE:
            b_delta = b_delta / 2
        b_opened = _full(R, 1, W, A, T, 0.0, tl.float32)

    b_out = _full(R, C, W, A, T, 0.0, tl.float32)
    b_top = _full(R, 1, W, A, T, 0.0, tl.float32)
    for j0 in range(0, stop, BLOCK):
        some = True
        if PADDED:
            some = _any_seen(p_padding, j0, stop, s_pn, BLOCK)
        if some:
            for i in range(j0, tl.minimum(j0 + BLOCK, stop)):
                j = _opaque(i, ASM)
                b_k = _load_row(p_k + j * s_kn, m_d, D, C, T)
                b_v = _load_row(p_v + j * s_vn, m_d, D, C, T)
                z = _score(_row_sum(tl.abs(b_q - b_k)), b_center, scale, shift, LEAST)
                if not GATE:
                    z = _relu(z)
                place = _place(j, j, p_padding, s_pn, PADDED)
                if delta is not None:
                    b_opened += _where_seen(place, last, _opening(z, b_delta, GATE), 0.0, CAUSAL, PADDED)
                place = _place(place, j, p_dropout, s_dn, DROPPED)
                # What takes no part: nothing of it is clamped away.
                z = _where_seen(place, last, z, 0.0, CAUSAL, PADDED or DROPPED)
                if delta is None:
                    b_top = tl.maximum(b_top, z, propagate_nan=tl.PropagateNan.ALL)
                b_out -= _clamp(b_v if SIGNED else tl.maximum(b_v, 0.0), z, GATE, XORSIGN)
    p_total = total + bh * D * (N if CAUSAL else 1) + o_d
    if CAUSAL:
        last = tl.minimum(last, N - 1)
        b_out += tl.load(p_total + last * D * s_od, mask=m_q & (last >= 0), other=0.0)
    else:
        b_out += tl.load(p_total, mask=m_d, other=0.0)
    if delta is None:
        b_out = tl.where(b_top >= 0, b_out, float("nan"))
    else:
        b_opened += _NOTHING_PASSES
        tl.store(opened + bh * M + o_m * s_row, b_opened, mask=m_first)
        b_beta = b_beta / b_opened
    p_out = out + b * s_ob + h * s_oh + o_m * s_om + o_d * s_od
    tl.store(p_out, (b_beta * b_out).to(out.dtype.element_ty), mask=m_q)


@triton.jit
def _inhibits(s, GATE: tl.constexpr):
    """The score as it inhibits: a gate takes it as it comes."""
    return s if GATE else tl.maximum(s, 0.0)


@triton.jit
def _passing(b_v, b_g, z, SIGNED: tl.constexpr, GATE: tl.constexpr):
    """What the values that exceed z take of the gradient, to v and to -z, channel by channel."""
    if GATE:
        # Half of it while the gate opens; all of it, and z nothing, once it is open.
        part, whole = _exceeds(tl.abs(b_v), 2 * tl.abs(z)), tl.where(z < 0, 1.0, 0.0)
        return b_g * (part * (0.5 - whole) + whole), _with_sign_of(b_g, b_v) * part
    elif SIGNED:
        passed = _exceeds(tl.abs(b_v), z)
        return b_g * passed, _with_sign_of(b_g, b_v) * passed
    else:
        taken = b_g * _exceeds(b_v, z)
        return taken, taken


@triton.jit(do_not_specialize=["H", "M", "N", "s_row", "s_qd", "s_gd", "s_dqd"])
def _backward_query_kernel(
    g, q, k, v, padding, dropout, alpha, beta, gamma, delta, center, nearest, opened, dq, ds_center, sums,
    H, M, N, root, s_alpha, s_beta, s_gamma, s_delta, s_row,
    s_gb, s_gh, s_gm, s_gd, s_qb, s_qh, s_qm, s_qd, s_kb, s_kh, s_kn, s_kd, s_vb, s_vh, s_vn, s_vd,
    s_dqb, s_dqh, s_dqm, s_dqd, s_pb, s_pn, s_db, s_dn,
    D: tl.constexpr, R: tl.constexpr, C: tl.constexpr, W: tl.constexpr, A: tl.constexpr, T: tl.constexpr,
    BLOCK: tl.constexpr, SIGNED: tl.constexpr, GATE: tl.constexpr, MEAN: tl.constexpr, LEAST: tl.constexpr,
    CAUSAL: tl.constexpr, PADDED: tl.constexpr, DROPPED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The row pass: dq; where centred ds_center, each row's mean of the gradients of its scores, or with LEAST their sum;
    and in sums (3 or 4, B, H, M) each row's share of the gradients of alpha, beta, gamma and delta. That of alpha is NaN for
    a row that is not finite.

    With a delta g is already divided by what the sum is; opened: the gradient of that.
    """
    blocks = tl.cdiv(M, R * W * A)
    pid = tl.program_id(0)
    bh = (pid // blocks).to(tl.int64)
    b, h = bh // H, bh % H
    o_m = _rows(pid % blocks, R, W, A, T)
    o_d = _columns(C, T)
    m_m, m_d = o_m < M, o_d < D
    m_first = m_m & _first_lane(T)
    m_q = m_m & m_d
    p_k, p_v = k + b * s_kb + h * s_kh + o_d * s_kd, v + b * s_vb + h * s_vh + o_d * s_vd
    p_padding, p_dropout = padding + b * s_pb, dropout + b * s_db
    last = o_m + (N - M)
    stop = N
    if CAUSAL:
        stop = tl.minimum(N, tl.maximum(tl.max(last), -1) + 1)

    b_q = tl.load(q + b * s_qb + h * s_qh + o_m * s_qm + o_d * s_qd, mask=m_q, other=0.0).to(tl.float32)
    b_g = tl.load(g + b * s_gb + h * s_gh + o_m * s_gm + o_d * s_gd, mask=m_q, other=0.0).to(tl.float32)
    b_alpha, b_beta = tl.load(alpha + h * s_alpha), tl.load(beta + h * s_beta)
    scale = tl.load(gamma + h * s_gamma) * root
    # To be stored at once: it would take a register in the loop.
    tl.store(sums + bh * M + o_m * s_row, _row_sum((b_q + b_g) * 0.0), mask=m_first)
    b_center = _full(R, 1, W, A, T, 0.0, tl.float32)
    if MEAN:
        b_center = tl.load(center + bh * M + o_m * s_row, mask=m_m, other=0.0)
    if LEAST:
        # Computed anew, with the bits that the loop finds: the score of the nearest key is alpha exactly.
        p_nearest = k + b * s_kb + h * s_kh + o_d * s_kd * s_row
        p_nearest += tl.load(nearest + bh * M + o_m * s_row, mask=m_m, other=0) * s_kn
        b_center = _row_sum(tl.abs(b_q - tl.load(p_nearest, mask=m_q, other=0.0).to(tl.float32)))
        shift = b_alpha + 0.0 * scale
    else:
        shift = b_alpha - scale * b_center
    if delta is not None:
        b_delta = tl.load(delta + h * s_delta)
        b_opened = tl.load(opened + bh * M + o_m * s_row, mask=m_m, other=0.0)
        b_passed = _full(R, 1, W, A, T, 0.0, tl.float32)
        b_open = _full(R, 1, W, A, T, 0.0, tl.float32)

    b_dq = _full(R, C, W, A, T, 0.0, tl.float32)
    b_signs = _full(R, C, W, A, T, 0.0, tl.float32)
    b_ds = _full(R, 1, W, A, T, 0.0, tl.float32)
    b_moment = _full(R, 1, W, A, T, 0.0, tl.float32)
    b_rest = _full(R, 1, W, A, T, 0.0, tl.float32)
    b_count = _full(R, 1, W, A, T, 0.0, tl.float32)
    for j0 in range(0, stop, BLOCK):
        some = True
        if PADDED:
            some = _any_seen(p_padding, j0, stop, s_pn, BLOCK)
        if some:
            for i in range(j0, tl.minimum(j0 + BLOCK, stop)):
                j = _opaque(i, ASM)
                place = _place(j, j, p_padding, s_pn, PADDED)
                kept = _place(place, j, p_dropout, s_dn, DROPPED)
                b_v = _load_row(p_v + j * s_vn, m_d, D, C, T)
                b_x = b_q - _load_row(p_k + j * s_kn, m_d, D, C, T)
                distance = _row_sum(tl.abs(b_x))
                s = _score(distance, b_center, scale, shift, LEAST)
                _, b_to_z = _passing(b_v, b_g, _inhibits(s, GATE), SIGNED, GATE)
                ds = _row_sum(b_to_z)
                if not GATE:
                    ds = tl.where(s > 0, ds, 0.0)
                ds = _where_seen(kept, last, ds, 0.0, CAUSAL, PADDED or DROPPED)
                if delta is not None:
                    kept = place  # of a dropped key too
                    b_passed += _where_seen(place, last, ds * s, 0.0, CAUSAL and PADDED, PADDED)
                    opens = _opens(s, b_delta, GATE)
                    b_open += _where_seen(place, last, tl.where(opens, s, 0.0), 0.0, CAUSAL, PADDED)
                    opening = tl.where(opens, b_delta * b_opened, 0.0)
                    ds = b_beta * ds + _where_seen(place, last, opening, 0.0, CAUSAL, PADDED)
                b_ds += ds
                deviation = distance - b_center
                # Behind the padding a distance may be nan, which 0 times it is too.
                b_moment += _where_seen(kept, last, ds * deviation, 0.0, CAUSAL and PADDED, PADDED)
                b_step = _half_step(b_x)
                b_dq += ds * b_step
                if MEAN:
                    b_rest += _where_seen(place, last, deviation, 0.0, CAUSAL, PADDED)
                    if CAUSAL or PADDED:
                        weight = _where_seen(place, last, _full(1, 1, 1, 1, T, 1.0, tl.float32), 0.0, CAUSAL, PADDED)
                        b_signs += weight * b_step
                        if PADDED:
                            b_count += weight
                    else:
                        b_signs += b_step
    # The steps are (1 + sign) / 2, and what is taken through z counts against it.
    b_dq = b_ds - 2 * b_dq
    if delta is not None:
        b_beta = 1.0  # ds has it in it
    if LEAST:
        b_dq += b_ds * (2 * _half_step(b_q - tl.load(p_nearest, mask=m_q, other=0.0).to(tl.float32)) - 1)
        tl.store(ds_center + bh * M + o_m * s_row, -b_beta * b_ds, mask=m_first)
    if MEAN:
        if not PADDED:
            b_count += tl.minimum(tl.maximum(last + 1, 0), N) if CAUSAL else N
        b_ds_center = b_ds / tl.maximum(b_count, 1.0)
        # The mean is rounded: what the deviations do not sum to 0 by, it lacks.
        b_moment -= b_ds_center * b_rest
        b_dq += b_ds_center * (2 * b_signs - b_count)
        tl.store(ds_center + bh * M + o_m * s_row, -b_beta * b_ds_center, mask=m_first)
    p_dq = dq + b * s_dqb + h * s_dqh + o_m * s_dqm + o_d * s_dqd
    tl.store(p_dq, (scale * b_beta * b_dq).to(dq.dtype.element_ty), mask=m_q)
    p_sums = sums + bh * M + o_m * s_row
    rows = (tl.num_programs(0) // blocks).to(tl.int64) * M
    tl.store(p_sums, tl.load(p_sums, mask=m_first, other=0.0) - b_beta * b_ds, mask=m_first)
    # sum of z · dz / beta, where z = scale · distance + alpha
    tl.store(p_sums + rows, -(scale * b_moment + b_alpha * b_ds) if delta is None else -b_passed, mask=m_first)
    tl.store(p_sums + 2 * rows, -b_beta * root * b_moment, mask=m_first)
    if delta is not None:
        tl.store(p_sums + 3 * rows, -b_opened * b_open, mask=m_first)


@triton.jit(do_not_specialize=["H", "M", "N", "s_row", "s_kd", "s_vd", "s_dkd", "s_dvd", "s_pn", "s_dn"])
def _backward_key_kernel(
    g, q, k, v, padding, dropout, alpha, beta, gamma, delta, center, nearest, opened, ds_center, dk, dv, dbeta,
    H, M, N, root, s_alpha, s_beta, s_gamma, s_delta, s_row,
    s_gb, s_gh, s_gm, s_gd, s_qb, s_qh, s_qm, s_qd, s_kb, s_kh, s_kn, s_kd, s_vb, s_vh, s_vn, s_vd,
    s_dkb, s_dkh, s_dkn, s_dkd, s_dvb, s_dvh, s_dvn, s_dvd, s_pb, s_pn, s_db, s_dn,
    D: tl.constexpr, R: tl.constexpr, C: tl.constexpr, W: tl.constexpr, A: tl.constexpr, T: tl.constexpr,
    SIGNED: tl.constexpr, GATE: tl.constexpr, MEAN: tl.constexpr, LEAST: tl.constexpr, CAUSAL: tl.constexpr,
    PADDED: tl.constexpr, DROPPED: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    """The column pass, its rows are keys: dk, dv, and in dbeta (B, H, N) each key's share of the gradient of beta, NaN for
    one that is not finite."""
    blocks = tl.cdiv(N, R * W * A)
    pid = tl.program_id(0)
    bh = (pid // blocks).to(tl.int64)
    b, h = bh // H, bh % H
    o_n = _rows(pid % blocks, R, W, A, T)
    o_d = _columns(C, T)
    m_n, m_d = o_n < N, o_d < D
    m_first = m_n & _first_lane(T)
    seen = m_n
    if PADDED:
        seen = seen & (tl.load(padding + b * s_pb + o_n * s_pn, mask=m_n, other=0) != 0)
    kept = seen
    if DROPPED:
        kept = kept & (tl.load(dropout + b * s_db + o_n * s_dn, mask=m_n, other=0) != 0)
    m_k = seen & m_d
    b_k = tl.load(k + b * s_kb + h * s_kh + o_n * s_kn + o_d * s_kd, mask=m_k, other=0.0).to(tl.float32)
    b_v = tl.load(v + b * s_vb + h * s_vh + o_n * s_vn + o_d * s_vd, mask=kept & m_d, other=0.0).to(tl.float32)
    tl.store(dbeta + bh * N + o_n * s_row, _row_sum((b_k + b_v) * 0.0), mask=m_first)
    p_q, p_g = q + b * s_qb + h * s_qh + o_d * s_qd, g + b * s_gb + h * s_gh + o_d * s_gd
    b_alpha, b_beta = tl.load(alpha + h * s_alpha), tl.load(beta + h * s_beta)
    scale = tl.load(gamma + h * s_gamma) * root
    if delta is not None:
        b_delta = tl.load(delta + h * s_delta)
    first = o_n - (N - M)  # with CAUSAL the first query that sees a key
    start, stop = 0, M
    if CAUSAL:
        start = tl.maximum(tl.min(first), 0)
    if PADDED:
        stop = tl.where(tl.max(seen.to(tl.int32)) > 0, M, 0)

    b_dk = _full(R, C, W, A, T, 0.0, tl.float32)
    b_dv = _full(R, C, W, A, T, 0.0, tl.float32)
    b_ds = _full(R, 1, W, A, T, 0.0, tl.float32)
    for step in range(start, stop):
        i = _opaque(step, ASM)
        b_g = _load_row(p_g + i * s_gm, m_d, D, C, T)
        b_x = _load_row(p_q + i * s_qm, m_d, D, C, T) - b_k
        shift, b_center = b_alpha, 0.0
        if MEAN:
            shift -= scale * tl.load(center + bh * M + i)
        if LEAST:
            b_center = tl.load(center + bh * M + i)
            shift += 0.0 * scale
        s = _score(_row_sum(tl.abs(b_x)), b_center, scale, shift, LEAST)
        z = _inhibits(s, GATE)
        if CAUSAL:
            z = tl.where(i >= first, z, float("inf"))
        b_to_v, b_to_z = _passing(b_v, b_g, z, SIGNED, GATE)
        b_dv += b_to_v
        ds = tl.where(kept if GATE else (s > 0) & kept, -b_beta * _row_sum(b_to_z), 0.0)
        if delta is not None:
            ds -= tl.where(_opens(s, b_delta, GATE), b_delta * tl.load(opened + bh * M + i), 0.0)
        if MEAN:
            ds -= tl.load(ds_center + bh * M + i)
        if LEAST:
            ds -= tl.where(o_n == tl.load(nearest + bh * M + i), tl.load(ds_center + bh * M + i), 0.0)
        if CAUSAL:
            ds = tl.where(i >= first, ds, 0.0)
        b_ds += ds
        b_dk += ds * _half_step(b_x)
    b_dbeta = _row_sum(b_v * b_dv) + tl.load(dbeta + bh * N + o_n * s_row, mask=m_first, other=0.0)
    tl.store(dbeta + bh * N + o_n * s_row, b_dbeta, mask=m_first)
    b_dk = tl.where(seen, scale * (b_ds - 2 * b_dk), 0.0)
    b_dv = tl.where(kept, b_beta * b_dv, 0.0)
    m_out = m_n & m_d
    p_dk = dk + b * s_dkb + h * s_dkh + o_n * s_dkn + o_d * s_dkd
    p_dv = dv + b * s_dvb + h * s_dvh + o_n * s_dvn + o_d * s_dvd
    tl.store(p_dk, b_dk.to(dk.dtype.element_ty), mask=m_out)
    tl.store(p_dv, b_dv.to(dv.dtype.element_ty), mask=m_out)
