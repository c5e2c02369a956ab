"""The words that people write into descriptions of MR sequences, by their meaning.

They are written without accents and in lower case. A phrase of several words counts before its
parts. English, German, French, Spanish, Dutch and Italian are mixed, as the language of a hospital
is not known.
"""

from collections.abc import Mapping


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(","))


# Words about the contrast of the image.
KINDS: Mapping[str, tuple[str, ...]] = {
    "t1": _phrases("""
        t1, t1w, t1wi, t1mri, t1 weighted, t1weighted, t1 wi, st1w, et1w, sst1, t1 pond, t1dual
    """),
    "t1 native": _phrases("t1n, t1nat"),
    "t1 with agent": _phrases("t1c, t1ce, t1gd, t1wce, t1wc, t1wks, ct1"),
    "t1 by technique": _phrases("""
        mprage, mp rage, mp-rage, memprage, mempr, mp2rage, mpragec, bravo, spgr, fspgr, irspgr,
        irfspgr, efgre3d, vibe, starvibe, lava, thrive, ethrive, tfe, itfe, t1tfe, mdeft, tfl,
        tfl3d, turboflash, 3dtfe, turbofield, mpr gradwarp, mpr r gradwarp, mpr n3, mt1 gradwarp,
        mt1 n3m, fastmprage, wave mprage
    """),
    "t2": _phrases("""
        t2, t2w, t2wi, t2mri, t2 w, t2 weighted, t2weighted, t2 wi, st2w, et2w, t2 pond, t2tse,
        t2fse
    """),
    "flair": _phrases("""
        flair, flairw, eflair, sflair, t2f, dark fluid, darkfluid, dark fl, da fl, dafl, fluid
        dark, dark fluids, dark flu, fluid attenuated, darkfl, vflair, flair3d, t2flair, 水抑制,
        压水, 抑水
    """),
    "t2star": _phrases("""
        t2star, t2 star, t2starw, t2 star w, t2starwi, t2 star wi, t2 s, t2stern, hemo, haemo,
        heme, t2 stern, t2 etoile, t2 estrella, t2 estrela, t2 stella, t2 ster, t2 asterisk, t2
        asterisco, hemoflash, mpgr, medic, merge, t2 hemo, star t2
    """),
    "swi": _phrases("""
        swi, swan, ven bold, sven bold, venous bold, susceptibility weighted, swip, venobold,
        venbold, swi images, vensuz, suszeptibilitat, qsm swi
    """),
    "pd": _phrases("""
        pd, pdw, pdwi, pdweighted, pd weighted, proton density, protondensity, densite de protons,
        dp, protonendichte, densite protonique, densita protonica, densidad protonica, densidad de
        protones
    """),
    "dwi": _phrases("""
        dwi, edwi, sdwi, dw, diff, diffusion, diffusione, difusion, diffusie, tracew, trace, ep2d
        diff, b1000, b 1000, b800, b900, b1200, hbv, high b, high b value, isotropic dwi, resolve,
        dwib1000
    """),
    "adc": _phrases("""
        adc, adcmap, adc map, dadc, dadc map, apparent diffusion coefficient, carto adc,
        cartographie adc, mappa adc, mapa adc, karte adc, map adc, adc karte
    """),
}  # fmt: skip

# Words for images that are no modality of ours; the first match counts.
ASIDES: Mapping[str, tuple[str, ...]] = {
    "screen shot": _phrases("""
        screen save, screensave, screenshot, screen shot, thumbnail, preview, montage, annotated,
        annotations, bildschirmfoto, capture d ecran, captura, measurements, messungen,
        phoenixzipreport, phoenix, key images, secondary capture, exam card, examcard, dose report,
        protocol page, report
    """),
    "result of a program": _phrases("""
        neuroquant, lesionquant, icobrain, icometrix, mdbrain, ai rad, airad, quantib, qyscore,
        qynapse, cneuro, combinostics, pixyl, biometrica, jung diagnostics, subtlemr, subtlegad,
        subtle mr, subtle gad, swiftmr, brainlab, olea sphere, oleasphere, lesiontracking, lesion
        tracking, lesion overlay, plus lesion, plus lesions, morphometry, morphometrie, onq,
        volbrain, vuno, deepbrain, neurophet, airascore, mint lesion, ai result, ai results,
        results, result, ergebnis, ergebnisse, mm oncology, syngo via, colored, coloured, color
        coded, rgb
    """),
    "localiser": _phrases("""
        localizer, localiser, localizers, localisers, loc, scout, scouts, survey, 3plane, 3 plane,
        three plane, 3 pl, 3pl, aahead, aahscout, aascout, aahead scout, smartbrain, lokalizer,
        lokalisator, localizador, localisateur, localizzatore, lokalizator, reperage, topogram,
        scanogram, pilot, plan scan, planscan, surveys, locator, localisatie, localise, localize,
        localization, localisation
    """),
    "calibration": _phrases("""
        calibration, cal, calib, kalibration, calibracion, calibrazione, coil survey, senseref,
        sense ref, refscan, ref scan, reference scan, prescan, b1map, b1 map, b1 mapping, noise
        scan, shim, coilsurvey, kalibrierung, calibrage, quickcal, setter
    """),
    "subtraction": _phrases("""
        delta t1, t1 delta, deltat1, dt1, sub, subs, subtr, subtract, subtracted, subtraction,
        subtraktion, soustraction, sustraccion, sottrazione, subtractie, difference, subtractions,
        substraction
    """),
    "projection": _phrases("""
        mip, mips, minip, mpmip, projection, projection image, projections, proj, volume rendering,
        vol render, vrt, curved mpr, radial mip, collapse, collapsed, pjn, vr, 3d rendering,
        thickmip
    """),
    "spectroscopy": _phrases("""
        mrs, csi, svs, spectro, spectroscopy, spektroskopie, spectroscopie, mrsi, press, steam,
        probe p, probe, mega press, megapress
    """),
    "angiography": _phrases("""
        tof, 3dtof, 2dtof, time of flight, mra, mrv, mrangio, angio, angiography, angiographie,
        angiografia, angiogram, venogram, venography, inhance, trance, inflow, pca, pc3d, cemra, ce
        mra, phase contrast, phasecontrast, pc mrv, arm, 3dpc, pcmra, tofs, circle of willis, 3d
        pc, 2d pc, pc angio, ceangio, bloodflow, flow, qflow, fl tof, toff, venc, angiotof, tricks
    """),
    "field map": _phrases("""
        fieldmap, field map, fieldmapping, field mapping, fmap, b0map, b0 map, topup, phasediff,
        magnitude1, magnitude2, phase1, phase2, fieldmaphz, distortion, spinechofieldmap,
        distortionmap, fieldmaps, gre field, grefieldmapping, feldkarte, se epi
    """),
    "perfusion": _phrases("""
        perf, perfusion, perfusione, perfusie, pwi, dsc, asl, pcasl, pasl, casl, cbf, cbv, rcbv,
        rcbf, mtt, ttp, tmax, ktrans, relcbf, relcbv, relmtt, gbp, pbp, perfusionweighted,
        neuroperf, easl, aif, m0scan, m0, leakage, swip perfusion, tirf, perfusions
    """),
    "functional": _phrases("""
        bold, fmri, rsfmri, rfmri, resting, restingstate, resting state, rest fmri, sbref, task,
        ep2d bold, nback, mosaic, moco, epibold, rs fmri, restfmri, fingertapping, finger tapping,
        fcmri
    """),
    "dynamic": _phrases("""
        dce, dyn, dynamic, dynamisch, dynamique, dinamico, dinamica, twist, disco, grasp, dynamics,
        time resolved, 4d, cine, dinamic, twistvibe, dynamiek
    """),
    "diffusion map": _phrases("""
        fa, colfa, fractional anisotropy, tensor, eadc, exp adc, expadc, exponential, tractography,
        color fa, fa map, tracts, md map, exponential adc, expapparent, eapparent, fractional
    """),
    "diffusion tensor series": _phrases("""
        dti, hardi, noddi, dsi, dki, dwi dti, diffdirs, multishell, dtiep
    """),
    "magnetisation transfer": _phrases("""
        mtc, mt, mton, mtoff, mt on, mt off, mtr, mtsat, magnetization transfer, magnetisation
        transfer, cest, aptw, apt, mtw
    """),
    "map": _phrases("""
        snr, cnr, t1map, t2map, t1 map, t2 map, t1 mapping, t2 mapping, t1 images, t2 images,
        relaxometry, r2star, r2s, t1rho, t1 rho, qt1, qt2, mwf, qsm, t2star map, r1 map, r2 map,
        r1map, r2map, pdmap, pd map, molli, despot, t2 relaxation, t1 relaxation, myomaps, map,
        maps, t2 maps, t1 maps, quant, quantitative, quantitativ, quantitatif, cuantitativo,
        quantitativo, parametric, calc, calculated, berechnet, calct1, calct2, cpmg, relax,
        relaxation, threshold, thresholded, relaxation time, fat fraction, fat frac, fatfrac,
        fatfraction, fat percentage, pdff, bias field, biasfield, snr map, prob, probs,
        probability, probmap, uncertainty, entropy, heatmap, saliency, residual, error, edges,
        ratio, dividedby, corticalthickness, cortical thickness, logjacobian, log jacobian
    """),
    "synthetic": _phrases("""
        simulated, gan, cyclegan, pix2pix, synthetic, syntac, symri, magic, synt1, synt2, synflair,
        flair star, flairstar, mdme, qalas, synth, synthesized, synthesised, synthetised,
        synthesis, synthetisch, synthetique, sintetico, sintetica, synthetisiert, synthsr, fake,
        generated, predicted, prediction, pred, imputed, translated, virtual, pseudo
    """),
    "elastography": _phrases("mre, elastography, elastogram, elasto"),
    "steady state": _phrases("""
        ciss, fiesta, fiestac, trufi, truefisp, btfe, b tfe, bffe, b ffe, bssfp, ssfp, balanced,
        fiesta c, true fisp, de3d, dess, psif, fisp, basg, pbsg, trsg, cosmic
    """),
    "STIR": _phrases("stir, stirs, t2stir, dark fat, darkfat, fat dark"),
    "opposed-phase image": _phrases("""
        opposed phase, opposed, opposedphase, out of phase, outphase, out phase, opp phase,
        oppphase, oop, opp, gegenphase
    """),
    "tagging": _phrases("tagging, tagged, spamm"),
    "fused image": _phrases("fusion, fused, overlay, blended"),
    "template": _phrases("template"),
    "altered copy": _phrases("""
        flipped, mirrored, mirror, inverted, augmented, gespiegelt, invertiert, miroir, inverse
        contrast
    """),
    "cholangiography or myelography": _phrases("""
        mrcp, thick slab, myelo, myelogram, myelography, myelographie, myelografie
    """),
    "double inversion": _phrases("""
        double inversion, double ir, doubleir, dir space, space dir, spc dir, t2 dir, dir t2, sag
        dir, 3d dir, ax dir
    """),
    "phase-sensitive inversion": _phrases("""
        psir, phase sensitive, fgatir, flaws, wmnull, ir real, real ir, tir real
    """),
    "one inversion of an MP2RAGE": _phrases("inv1, inv2, inv 1, inv 2"),
    "phase": _phrases("""
        phase, pha, phasen, pha images, imaginary, phase images, ph map, swi phase
    """),
    "magnitude of an SWI": _phrases("""
        mag images, magnitude images, mag image, swi mag, mag swi, swi images mag, swi total mag
    """),
    "deformation": _phrases("""
        warp, inversewarp, inversewarped, 0warp, 1warp, 1inversewarp, deformation, jacobian,
        displacement, warpfield, jac, genericaffine, 0genericaffine, 1genericaffine, inv warp
    """),
    "mask": _phrases("""
        mask, masks, seg, segs, dseg, probseg, segmentation, segmentations, label, labels, aseg,
        aparc, roi, rois, contour, contours, rtstruct, parcellation, maske, masque, mascara,
        maschera, pveseg, brainmask, tissue, defacemask, headmask
    """),
    "another imaging method": _phrases("ct, cta, ctp, ncct, pet, fdg, spect, cbct, ultrasound"),
}  # fmt: skip

# Words about a contrast agent, alone or with the word beside them.
AGENTS: Mapping[str, tuple[str, ...]] = {
    "agent": _phrases("""
        gd, gad, gado, gadolinium, gadolinio, gadolineum, gadovist, gadavist, dotarem, magnevist,
        multihance, prohance, omniscan, clariscan, vueway, elucirem, gadoteridol, gadobutrol,
        gadoterate, gadopentetate, gdtpa, gddtpa, gd dtpa, gd dota, gddota, gadopiclenol, km,
        kontrast, kontrastmittel, contrast, contrasto, contraste, contrastmiddel,
        contrastvloeistof, ce, enh, mdc, mezzo di contrasto, medio de contraste, produit de
        contraste, pdc, cte, inj, injected, injection, injecte, injectee, enhanced, enhancement,
        contrastenhanced, contrast enhanced, contrast agent, iniettato, gdc, contrast medium, dye,
        gdbopta, gd bopta, gd hp do3a, gdbt do3a, artirem, primovist, eovist, optimark, dotagraf,
        kontrascie
    """),
    # each says nothing of an agent without a sign or a preposition
    "letter": _phrases("c, g, k, iv, ev, cm, mc, pc, civ, ivc, ca, gbca"),
    "with": _phrases("""
        postcontrast, postcontraste, poscontraste, postgd, postgad, postgado, postkm, postcon, post
        con, w con, with con, mkm, nkm, mitkm, nachkm, gdpost, gadpost, kmplus, ckm, postcontrasto,
        pc gd, postinj, postinjection, cmdc, mmdc, postmdc, dopomdc, posgad, wcontrast, wgd, wgad,
        wcon, postc, postce, post iv, gdplus, plusgd, pluskm, pluscontrast, with iv, withcontrast,
        withgd, withgad, mitgd, mitkontrast, metkm, metgd, metcontrast, concontraste, concontrasto,
        avecgado, avecgd
    """),
    "without": _phrases("""
        native, nativ, nat, nativo, nativa, natif, plain, blanco, precontrast, precontraste, pregd,
        pregad, pregado, prekm, precon, pre con, non con, noncon, wo con, without con, no con, w o
        con, noncontrast, nocontrast, nogad, nogd, unenhanced, okm, ohnekm, vkm, vorkm, basale,
        nonenhanced, smdc, precontrasto, preinj, nativt1, wocontrast, wogad, wogd, wocon, nongd,
        nongad, nc, prec, premdc, minusgd, minuskm, senzamdc, sanscontraste, sansinj, nonce,
        withoutcontrast, withoutgd, withoutgad, ohnegd, ohnegad, ohnekontrast, keinkm, zonderkm,
        zondergd, zondercontrast, sincontraste, sansgado, sansgd, nonenh, unenh, preinjection,
        preinjektion
    """),
    "both": _phrases("""
        wwo, w wo, w without, with and without, w and wo, with without, w w o, either
    """),
    "post": _phrases("post, pos"),
    "pre": _phrases("pre, prae, pra"),
    "not": _phrases("""
        without, wo, w o, w out, ohne, sans, pas, sin, zonder, senza, sem, uten, utan, uden, bez
    """),
    "perhaps not": _phrases("""
        no, non, not, o, none, kein, keine, geen, sg, refused, declined, abgelehnt, verweigert, n
        a, nein, nee, nicht, niet, ikke, inte, keins, keines, aucun, aucune, ninguno, ninguna,
        nessun, nessuno, nessuna
    """),
    "before": _phrases("before, prior, prior to, vor, v, avant, antes, voor, prima, przed"),
    "beside": _phrases("""
        with, w, mit, m, avec, con, met, com, after, nach, n, apres, na, dopo, despues, tras, med,
        po, etter, efter
    """),
    "plus": _phrases("plus, positiv, positive"),
    "minus": _phrases("""
        minus, neg, negativ, negative, negativo, negatif, negatief, frei, free
    """),
    "dash": _phrases("dash"),
    "late": _phrases("""
        late, delayed, delay, spat, verzogert, tardif, tardive, tardivo, tardiva, tardio, tardia,
        laat, minutes, spaet, arterial, arteriell, arteriel, arterielle, arteriale, arterieel,
        venous, venos, venoes, veineux, veineuse, venoso, venosa, veneus, portal, portale,
        portalvenous, portovenous, hepatobiliary, hepatobiliar, hbp, equilibrium, early, fruh,
        frueh, precoce, vroeg
    """),
}  # fmt: skip

# Words about neither, and words that would be mistaken for others without their neighbour.
NEUTRAL: Mapping[str, tuple[str, ...]] = {
    "other": _phrases("""
        arm 1, arm 2, arm 3, arm 4, flow comp, flow compensated, flow compensation, post op, pre
        op, postop, preop, post fossa, posterior fossa, post surgery, post rt, pre rt, post
        surgical, post treatment, pre treatment, post biopsy, c spine, c sp, cspine, l spine, t
        spine, c wirbel, c kolom, post processed, postprocessed, post process, magnetization
        transfer contrast, pre scan, c1, c2, c7, post mortem, postmortem, pos op, pre operative,
        post operative, preoperative, postoperative, postoperativ, preoperativ, praoperativ,
        praeoperativ, preoperatoire, postoperatoire, preoperatorio, postoperatorio, preoperatoria,
        postoperatoria, preoperatief, postoperatief, pre surgery, post stroke, post chemo, fast
        contrast, post hoc, post radiation, high contrast, low contrast, gray white contrast, grey
        white contrast, black blood, dark blood
    """),
    "two echoes": _phrases("""
        dual, dual echo, double echo, dualecho, de tse, double tse, ax t2 de, tra t2 de, t2 tse de,
        multi echo, multiecho
    """),
    "and": _phrases("and, und, u, et, y, e, en, &"),
    "break": (":",),
    "filler": _phrases("""
        i v, the, any, de, di, del, la, le, il, mezzo, produit, von, gabe, du, des, toediening,
        administration, administracion, somministrazione, verabreichung, van
    """),
    "orientation": _phrases("""
        ax, axi, axial, axiaal, axiale, assiale, ass, maxial, sag, sagittal, sagitt, sagital,
        sagittale, sagittaal, msagittal, cor, coronal, coronale, coronaal, koronar, mcoronal, tra,
        trans, transv, transversal, transverse, transversaal, obl, oblique, tr, 3d, 2d, brain,
        head, kopf, schadel, schaedel, cerebro, cerebral, cerveau, crane, hersenen, encefalo, hirn,
        neuro, whole, vol, volume, ist, iso, isotropic, hr, highres, 轴位, 横断, 横断位, 矢状,
        矢状位, 冠状, 冠状位, 軸位, 矢状断, 冠状断, 軸位断, аксиальная, осевая, сагиттальная,
        корональная
    """),
    "technique": _phrases("""
        tse, fse, isofse, frfse, fase, fase2d, fase3d, fse2d, fse3d, primefse, fe2d, fe3d, se, ir,
        tir, fs, fatsat, fat, sat, spair, fatsup, fsat, spir, mdixon, fl2d, fl3d, flash, gre, fsp,
        ffe, ge, eg, me2d, gradiente, gradient, gradientecho, fgre, mffe, tirm, space, spc, cube,
        vista, brainview, vfl, mvxd, blade, propeller, prop, multivane, radial, star, dixon, ideal,
        flex, haste, ssfse, epi, ep2d, asset, grappa, sense, ipat, ipat2, arc, cs, caipirinha, p2,
        p3, p4, wip, ns, nd, dis2d, dis3d, norm, mpr, fast, quick, long, short, drive, mt0, we,
        rapid, spin, echo, spinecho, turbo, water, reform, reformat, reformatted, rfmt, thin,
        clear, wsk, min, mm, 1mm, 3mm, 5mm, repeat, rpt, uni, uniden, uni images, den, images, te,
        ti, adni, filt, hires, high, res, resolution, stealth, navigation, nav, acs, cs ai, deep
        resolve, deep resolve boost, deep resolve sharp, deep resolve gain, deep resolve swift
        brain, smartspeed ai, gammaknife, gk, cyberknife, proset, wfs, compressed, ultra, ss, x,
        navi, stereotaxy, out, f, in, cv, orig, original, rssg
    """),
}  # fmt: skip

# What tools write into the names of what they made of an image.
PROCESSING = frozenset(
    _phrases("""
    bet, brain, ss, skullstripped, stripped, skullstrip, strip, hdbet, n4, n4itk, n4bfc, biascorr,
    bfc, bias, biascorrected, unbiased, corrected, corr, warped, reg, registered, coreg,
    coregistered, aligned, rigid, affine, normalized, normalised, mni, mni152, preproc,
    preprocessed, processed, denoised, pp, syn, unstripped, restore, resampled, resliced,
    reoriented, reorient, std, acpc, dc, rai, ras, lps, crop, cropped, robustfov, defaced, deface,
    zscore, histmatch, tilt, prenorm, lin, nonlin, superres, synthstrip, filled, inpainted, masked,
    voided, mninonlinear, brainextractionbrain, brainsegmentation0n4, atlas, talairach, t88,
    pydeface, quickshear, refaced, nyul, whitestripe, zscored, tmp, temp, stx, stereotaxic, sri,
    sri24, rsri, fullfov, ssfinal, noskull, deskulled, robex, smoothed, sanlm, gradwarp,
    gradunwarp, distcorr, brainmasked, headmasked, unringed, degibbs, degibbsed, elastic, deid,
    anonymized, anonymised, minmax, n4corrected, n4corrected0, assessors, transformed, sharpened,
    interpolated, dilated, eroded
""")
)

# Those of them that say that the skull was removed.
EXTRACTED = frozenset(
    _phrases("""
    bet, brain, hdbet, stripped, skullstripped, synthstrip, robex, noskull, deskulled
""")
)

# Beginnings of unlisted words about an agent, such as "kontrastverstärkt" and "contrastado" ...
AGENT_STEMS = ("contrast", "kontrast", "gado", "enhanc", "inject", "injekt", "iniett", "inyect")
# ... and endings of those that deny it, such as "kontrastfrei".
DENIALS = ("frei", "freie", "los", "lose", "less", "free", "loos", "vrij")
# "contrast" and "kontrast" go on in other words, too ("kontrastsiz" is Turkish for without), so
# that these have an agent only with one of these endings.
CONTRAST_ENDINGS = frozenset(
    _phrases("""
    ado, ada, ato, ata, ed, e, o, i, s, es, agent, enhanced, mittel, mittels, middel, medium,
    media, vloeistof, verstarkt, verstaerkt, verstarkte, iert, ierte, gabe, mittelgabe,
    mittelverstarkt, mittelverstaerkt, gestutzt, gestuetzt, mittelgestutzt, mittelgestuetzt,
    ografica, ografico, angehoben, em, om, u, anhebung, mittelunterstutzt, unterstutzt, 1, 2
""")
)

# Letters of unlisted words beside a T1 that may tell of a contrast agent, anywhere in the word...
AGENT_LETTERS = (
    "kontr", "contr", "cntr", "kntr", "gado", "vist", "hance", "dota", "dtpa", "bopta", "magnev",
    "omnisc", "enh", "injec", "injek", "iniez", "iniet", "inyec", "spritz", "bolus", "gabe",
    "ilacl", "ilacs", "thuoc", "zengq", "zouei", "zoei",
    "realc", "realz", "rehauss", "aankleur", "ingespo", "anreich", "verstark", "verstaerk",
    "impregn", "dosis", "dose", "agent", "tehost", "varjoain", "wzmoc", "sredstv", "srodek",
)  # fmt: skip
# ... and where a word begins or ends.
AGENT_ENDS = (
    "km", "gd", "gad", "mdc", "pdc", "inj", "cont", "kont", "post", "nach", "apres", "dopo",
    "despu", "after", "vorher",
)  # fmt: skip

# Words that tell of no contrast agent, where other short words that we do not know may.
HARMLESS = frozenset(
    _phrases("""
    osag, ocor, oax, dor, ap, pa, lr, rl, si, hf, lt, rt, left, right, posterior, anterior, diag,
    iac, iam, iacs, pit, orb, eye, ear, ohr, lws, hws, bws, isg, nnh, tmj, lab, hip, knee, leg,
    ppmi, ixi, hcp, nki, cbu, ukb, oas, aso, mr, mri, irm, rm, rmn, nmr, mrt, ped, new, neu, old,
    alt, ref, set, run, rms, seq, rev, ver, acq, acc, rec, par, fov, avg, nex, nsa, bh, fb, wdh,
    srt, cp, cpa, drb, drg, drs, dl, dlr, air, aice, hd, uhr, to, at, all, and, for, of, im, zu,
    bei, sur, pour, per, final, finale, br, raw, img, nii, dcm, src, tmp, fin, sub, ses, pat, id,
    vis, routine, standard, protocol, protokoll, accelerated, control, kontrolle, controle,
    controllo, rechts, links, droite, gauche, destra, sinistra, lf, ulf, hfs, ffs, hfp, ffp, fc, pf,
    sb, mb
""")
)

# Words that stand for a part of the body, by the word of DICOM's BodyPartExamined.
PARTS_OF_BODY: Mapping[str, str] = {
    "HEAD": "head brain skull kopf schadel schaedel hirn gehirn tete crane cerveau encephale "
    "cabeza craneo cerebro testa cranio cervello encefalo hoofd schedel hersenen",
    "CSPINE": "cspine cervical cervicale cervicaal zervikal hws halswirbelsaule halswirbelsaeule",
    "TSPINE": "tspine thoracic thorakal bws brustwirbelsaule brustwirbelsaeule dorsale",
    "LSPINE": "lspine lumbar lumbal lumbale lumbaire lombaire lombare lws "
    "lendenwirbelsaule lendenwirbelsaeule",
    "SPINE": "spine wirbelsaule wirbelsaeule rachis rachide columna colonna wervelkolom spinal "
    "spinale",
    "SACRUM": "sacrum",
    "NECK": "neck hals cuello",
    "ABDOMEN": "abdomen",
    "LIVER": "liver leber foie higado fegato lever",
    "PELVIS": "pelvis becken",
    "PROSTATE": "prostate prostata prostaat",
    "KNEE": "knee knie genou rodilla ginocchio",
    "SHOULDER": "shoulder schulter epaule hombro spalla schouder",
    "HEART": "heart cardiac herz coeur corazon cuore hart",
    "BREAST": "breast brust mamma",
}

# Words for healthy parts of the body, which a label may mark as well as a lesion.
ANATOMY = frozenset(
    _phrases("""
    ventricle, ventricles, ventrikel, ventricule, ventricules, ventricolo, ventriculo, thalamus,
    thalami, thalamic, hypothalamus, brainstem, hirnstamm, stem, hippocampus, hippocampi,
    hippocampal, hippo, cerebellum, cerebellar, kleinhirn, cervelet, callosum, caudate, caudatus,
    putamen, pallidum, pallidus, amygdala, accumbens, striatum, ganglia, nucleus, nuclei, nigra,
    nerve, nerves, chiasm, eye, eyes, eyeball, eyeballs, lens, cochlea, orbit, skull, bone, bones,
    scalp, vessel, vessels, artery, arteries, vein, veins, sinus, csf, liquor, plexus, pituitary,
    hypophysis, hypophyse, cortex, cortical, gray, grey, pons, medulla, midbrain, mesencephalon,
    insula, cerebrum, hemisphere, hemispheres, lobe, lobes, frontal, temporal, parietal, occipital,
    liver, prostate, gland, kidney, kidneys, spleen, lung, lungs, heart, cord, spine, vertebra,
    vertebrae, muscle, organ, organs, oar, destrieux, aal
""")
)

# Words that say that something was given or done before.
AFTER = frozenset(_phrases("nach, after, apres, dopo, despues, tras, na, efter, etter"))

# Words for the method, which in the name of a folder tell no more: "MRI post".
METHODS = frozenset(_phrases("mr, mri, mrt, irm, rm, rmn, nmr, scan, images"))

# Treatments: images "pre" or "post" them have an agent or not.
TREATMENTS = frozenset(_phrases("gammaknife, gk, cyberknife"))
# Their planning: "post stealth" has an agent, but "pre stealth" may have one, too.
PLANNING = frozenset(_phrases("stealth, navigation, nav, navi, stereotaxy"))

# Methods that part fat from water.
FAT_AND_WATER = frozenset(_phrases("dixon, mdixon, ideal, flex"))

# Sequences of pulses: a "w" before one is "weighted", and not "with".
PULSES = frozenset(
    _phrases("""
    tse, fse, isofse, frfse, fase, fse2d, fse3d, se, ir, tir, ffe, ge, gre, fgre, mffe, flash,
    haste, blade, propeller, multivane, turbo, spin, echo, spinecho, gradient, gradientecho
""")
)

# Sequences that make a T2 a T2*.
GRADIENT_ECHOES = frozenset(
    _phrases("gre, ffe, eg, me2d, gradiente, gradient, gradientecho, fl2d, fl3d, flash, fgre, mffe")
)

MEANINGS: Mapping[str, tuple[str, ...]] = {**KINDS, **ASIDES, **AGENTS, **NEUTRAL}
