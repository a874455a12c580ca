"""The 18 attribute types of core keywords (OneSearch, arXiv 2509.03236), and how a word or a column gets its type.

The seed lists are small on purpose: they type what mining finds, they do not decide what a keyword is.
"""

from __future__ import annotations

import re

ATTRIBUTES = (
    "entity", "modifier", "brand", "material", "style", "function", "location", "audience", "colour", "scene",
    "specification", "price",
    "model", "anchor", "series", "marketing", "season", "pattern",
)  # fmt: skip

# Column names of the items table that carry an attribute; `brand`, `category` and `price` belong to the data contract.
COLUMNS = {
    "entity": "type product_type genre genres product_group item_type class product_class",
    "modifier": "modifier adjective quality",
    "material": "material materials fabric ingredient ingredients",
    "style": "style theme fit look design",
    "function": "function functions feature features effect benefit use usage",
    "location": "location origin country region city place made_in",
    "audience": "audience gender age age_group department target_audience skin_type hair_type",
    "colour": "colour color colours colors shade",
    "scene": "scene occasion room setting",
    "specification": "specification specifications spec size capacity weight volume dimensions",
    "model": "model model_number model_name mpn part_number",
    "anchor": "anchor author influencer streamer artist creator",
    "series": "series collection line franchise",
    "marketing": "marketing promotion tag tags label labels deal badge",
    "season": "season seasons",
    "pattern": "pattern print",
}
COLUMN_TYPES = {name: kind for kind, names in COLUMNS.items() for name in names.split()}

_SEEDS = {
    "colour": "black white red blue green yellow orange purple pink brown grey gray silver gold golden beige navy "
    "ivory teal turquoise burgundy maroon cream khaki olive violet lavender magenta coral charcoal bronze copper nude "
    "multicolor rainbow transparent clear 黑色 白色 红色 蓝色 绿色 黄色 粉色 紫色 灰色 棕色 金色 银色 米色",
    "material": "cotton leather wool silk linen polyester nylon wood wooden bamboo plastic glass metal steel "
    "stainless aluminum aluminium ceramic porcelain rubber silicone velvet denim canvas suede fleece cashmere acrylic "
    "marble titanium brass foam latex mesh paper satin lace fur spandex microfiber vinyl resin iron stone crystal "
    "sterling rattan wicker collagen keratin 纯棉 真皮 羊毛 真丝 亚麻 不锈钢 实木 塑料 玻璃 陶瓷 硅胶",
    "style": "vintage modern classic retro casual formal rustic bohemian boho elegant minimalist traditional "
    "contemporary sporty chic gothic industrial farmhouse luxury preppy punk slim skinny oversized loose 复古 简约 "
    "休闲 韩版 欧美 时尚 宽松 修身",
    "audience": "men mens man women womens woman ladies lady kids kid children child boys boy girls girl baby babies "
    "toddler toddlers infant newborn unisex adult adults teen teens junior youth senior seniors pet pets dog dogs cat "
    "cats men's women's 男士 女士 男 女 儿童 宝宝 婴儿 男童 女童 学生 老人",
    "scene": "outdoor indoor home office kitchen bathroom bedroom garden travel camping hiking gym yoga wedding party "
    "birthday halloween christmas beach school work car running swimming fishing hunting garage patio dorm nursery "
    "户外 办公 家用 旅行 婚礼 运动 厨房 卧室 车载 宿舍",
    "season": "summer winter spring autumn fall all-season 春季 夏季 秋季 冬季 春秋 夏 冬",
    "pattern": "striped stripe stripes floral plaid polka dot dots camo camouflage leopard zebra checkered solid "
    "paisley geometric printed tie-dye animal print 条纹 碎花 格子 印花 纯色 豹纹",
    "location": "usa america american china chinese japan japanese korea korean france french italy italian germany "
    "german uk british india indian spain spanish turkey turkish mexico mexican canada canadian australia australian "
    "brazil brazilian morocco moroccan greek swiss swedish danish dutch european asian african hawaiian california "
    "texas paris london tokyo york 日本 韩国 法国 德国 意大利 进口 国产",
    "marketing": "sale deal discount bestseller best seller limited edition exclusive offer free bonus clearance gift "
    "value bundle premium official genuine authentic original popular trending deluxe 新款 爆款 正品 特价 包邮 限量 "
    "热卖 官方 旗舰",
    "function": "waterproof rechargeable wireless portable adjustable foldable breathable moisturizing hydrating "
    "whitening cleansing exfoliating conditioning volumizing firming soothing repair protection heating cooling "
    "cordless insulated washable reusable stretchable bluetooth automatic reversible absorbent lightweight quick-dry "
    "wrinkle-free moisturising 防水 保湿 美白 便携 充电 无线 透气 防晒 折叠 保暖 补水 降噪",
    "modifier": "new small large big mini long short thick thin soft hard heavy light natural organic pure fresh dry "
    "oily sensitive strong extra ultra super double single full high low professional advanced perfect beautiful cute "
    "hot 大 小 长款 短款 加厚 薄款 高级 迷你",
    "series": "series collection edition volume season 系列",
}
SEEDS = {word: kind for kind, words in _SEEDS.items() for word in words.split()}

UNITS = (
    "oz ounce ounces fl ml l liter litre liters gallon gallons quart pint g gram grams kg mg lb lbs pound pounds inch "
    "inches in ft feet foot cm mm m meter meters yard yards pack packs count ct pcs pc piece pieces set pair pairs gb "
    "tb mb mah volt volts v watt watts w hz ghz mhz mp spf tablet tablets capsule capsules sheet sheets dozen qt "
    "percent k p 寸 克 毫升 升 厘米 米 片 瓶 包 支 件 码"
)
_UNIT = "|".join(sorted(map(re.escape, UNITS.split()), key=len, reverse=True))
_SPECIFICATION = re.compile(rf"(?:^|.* )\d+(?:[.,]\d+)*(?: |x | x )*(?:{_UNIT})(?: .*)?$|.*\d+ x \d+.*|spf \d+$")
_MODEL = re.compile(r"(?=[a-z0-9]*\d)(?=[a-z0-9]*[a-z])[a-z0-9]{3,}$")
_FUNCTION = re.compile(
    r"^(?:anti|non|water|sweat|heat|wind|dust|shock|leak|stain|rust|slip)$|.{2,}(?:proof|resistant|repellent)$"
)


def type_of(words: list[str]) -> str | None:
    """The type that a keyword's words alone give away, or None.

    The last word that says something decides, as English nouns come last.
    """
    phrase = " ".join(words)
    if _SPECIFICATION.match(phrase):
        return "specification"
    joined = "".join(words)
    if phrase in SEEDS or joined in SEEDS:
        return SEEDS.get(phrase) or SEEDS[joined]
    if any(_MODEL.match(word) for word in words):
        return "model"
    if _FUNCTION.match(words[0]) or _FUNCTION.match(words[-1]):
        return "function"
    kinds = [SEEDS.get(word) for word in words]
    return kinds[-1] if all(kinds) else None
