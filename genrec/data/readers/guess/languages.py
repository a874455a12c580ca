"""What the words in a column's name or an action mean, by their stems in many languages.

Lists of whole names (``names.py``) are surer and come first. Stems are without accents; a name that speaks of two
things (``Descrizione articolo``, ``prix_produit``) has the role of what is said about the thing.
"""

from __future__ import annotations

import re
import unicodedata

# In order: what is said about a thing comes before the thing, the thing before the person.
_ROLES = {
    "title": """
        titl titul titre nom name nome nombre naam nazw nazev naziv navn namn nimi isim adi descri libell denominaz
        denominac omschrijv bezeichn beskriv benamn kuvaus опис наимен назван заголов 商品名 상품명 品名 名称 제목
    """,
    "category": """
        categor kategor rubri reparto groep grupp grupo gruppe famill famiglia группа катего раздел 类 分类 카테고리
    """,
    "brand": "brand marc marka merk marke producent fabricant fabrikant произв бренд марка 品牌 브랜드",
    "price": """
        price prez preis prij prix prec prei preco precio cena cene pris hint hinta fiyat tutar cost kost цена стоим
        价格 価格 가격 판매가 금액
    """,
    "quantity": "quant qt aantal ilosc menge anzahl adet antal maar kolich кол cantid mangd 数量 수량 個数",
    "query": "query suchbeg zoek recherche busca ricerca szuk haku arama запрос поиск 検索 搜索 검색",
    "rating": "rating note nota beoord bewert ocen betyg puan оценк рейтинг 평점",
    "timestamp": """
        time date data datum datet fecha dato pvm paivam tarih zaman dt quando moment horod tijd zeit czas tempo hora
        дата врем 日時 日期 时间 일시 일자 날짜 시간
    """,
    "action": """
        action acao accion azione actie akcj islem handling event evento evenement zdarz olay событ действ
        行为 行動 행동
    """,
    "item_id": """
        item product produ prodot produkt articl articol articul artikel artik artyk tuote vare vara urun sku towar
        товар артикул продукт 商品 상품 제품 品番
    """,
    "user_id": """
        user usuar usager utilis utent client customer klient klant kund gebruik bruker anvand asiak musteri kullan
        zakaz zakazn uzivat pelangg penggun member membre membro shopper buyer compra клиент пользов покупат
        会員 顧客 用户 客户 회원 고객 사용자
    """,
}
_BIRTH = "nasc nacim naiss geburt birth рожд doğum 生年 생년"
_NOT = """
    session sessio order ordine bestell bestel commande pedido encomend zamow zamowien
    sipar заказ 주문번호 invoice factur fattur rechn сотрудн employ store shop negozio filial magas tienda loja
"""
# Action -> stage; see names.STAGES.
_ACTIONS = {
    0: "impress exposur показ",
    1: """
        view visual vist visita visto vue consult click clic klik klick tikl goruntul wyswietl klikn aper apri abert
        просмотр клик открыт ansicht bekijk bekek katsel visn 点击 浏览 閲覧 조회 클릭
    """,
    2: "favor like wish desej desid merk lista lieblin begeni ulub избран 收藏 찜",
    3: """
        add ajout aggiunt anadi adicion doda добав cart carr carrello carrinho panier basket warenkorb winkelw koszyk
        sepet kurv varukorg ostosk корзин 加购 장바구니
    """,
    4: "checkout",
    5: """
        purchas order buy bought compra achat acquist acheta kauf kop kjop koop aankoop zakup kupn satin satis osto
        conversion transaction comand покуп заказ купл 购买 購入 구매 주문
    """,
}
_BASE_LETTERS = str.maketrans("ıłø", "ilo")
_UNDONE = re.compile(
    "remov|delet|cancel|refund|return|abandon|annul|supprim|retir|storn|iade|удал|отмен|возврат|취소|환불"
)


def _stems(text: str) -> tuple[str, ...]:
    return tuple(folded(stem) for stem in text.split())


def folded(text: str) -> str:
    """Lower case without accents."""
    plain = text.lower().translate(_BASE_LETTERS)
    return "".join(sign for sign in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(sign))


_ROLE_STEMS = {role: _stems(text) for role, text in _ROLES.items()}
_NOT_STEMS, _BIRTH_STEMS = _stems(_NOT), _stems(_BIRTH)
_ACTION_STEMS = {stage: _stems(text) for stage, text in _ACTIONS.items()}


def _words(text: str) -> list[str]:
    parts = re.sub(r"([a-z])([A-Z])", r"\1 \2", text)
    return [word for word in re.split(r"[\W_\d]+", folded(parts)) if word]


def _has(words: list[str], stems: tuple[str, ...]) -> bool:
    """Whether a word starts with a stem, or holds a long one, as compounds and scripts without spaces do."""
    return any(
        word.startswith(stem) or ((len(stem) > 4 or not stem.isascii()) and stem in word)
        for word in words
        for stem in stems
    )


def role_by_words(name: str) -> str | None:
    """The role that the words of a column's name speak of; None where they speak of none, or of a person's traits."""
    words = _words(name)
    roles = [role for role, stems in _ROLE_STEMS.items() if _has(words, stems)]
    if not roles:
        return None
    if roles[0] in ("title", "category", "brand", "price") and "user_id" in roles:
        return None  # a customer's name or group
    if _has(words, _BIRTH_STEMS) or (_has(words, _NOT_STEMS) and roles[0] in ("title", "item_id", "user_id", "action")):
        return None  # a birthday, an order's or a shop's number or name
    return roles[0]


def stage_by_words(action: str) -> int | None:
    """The stage that the words of an action speak of, as ``Product Viewed`` or ``satın alma``; None for none.

    Viewing a thing of a deeper stage is a view, adding to a wish list no cart; what is undone (refunded) is none.
    """
    words = _words(action)
    if _UNDONE.search(" ".join(words)):
        return None
    stages = [stage for stage, stems in _ACTION_STEMS.items() if _has(words, stems)]
    return next((stage for stage in (1, 2) if stage in stages), max(stages, default=None))
