"""What shops, data sets and tools call the columns of the data contract, and the actions of their feedback chains."""

from __future__ import annotations

import re

from genrec.data.readers.guess.languages import stage_by_words

# Role -> names without case and signs, the surest first.
_EVENT_NAMES = {
    "user_id": """
        userid user customerid customer uid visitorid visitor userpseudoid memberid member clientid client
        accountid account buyerid buyer subscriberid profileid reviewerid personid fullvisitorid
        kundennummer kundenid kundennr kunde nutzer nutzerid benutzer utilisateur cliente clienteid email
        emailaddress username cookieid deviceid anonymousid sessionid session usersession visitid
        hashedemail userhash rater
        usertoken usersha1 domainuserid usuario usuarioid idusuario idcliente codigocliente idutilisateur
        numeroclient
        用户id 用户编号 用户 会员id 会员编号 会员番号 会員番号 会員id 顧客id 顧客番号 顧客コード 客户id 客户编号
        ユーザーid ユーザid 고객번호 고객id 사용자id
    """,
    "item_id": """
        itemid item productid product sku articleid article stockcode asin isbn movieid movie videoid video
        trackid trackuri track songid song businessid newsid bookid book aid contentid goodsid materialid offerid
        listingid hotelid poi poiid venueid recipeid appid gameid showid podcastid documentid docid
        artikelnummer artikelnr artikelid artikel produktid produkt lineitemsku itemsku adid merchandiseid
        wid noteid pid iid mid lineitemname producto articulo
        objectid campaign campaignid creativeid bannerid joke jokeid eventlabel selabel
        idproducto codigoproducto idproduit referenceproduit
        商品id 商品编号 商品编码 商品コード 商品番号 商品 物品id 品番
        상품id 상품번호 상품코드
    """,
    "timestamp": """
        timestamp time ts eventtimestamp eventtime datetime unixtimestamp unixreviewtime timems timestampms
        createdat createdtime date eventdate orderdate purchasedate invoicedate transactiondate
        transactiondt transactiontime tdat reviewtime clicktime occurredat datum zeit zeitpunkt zeitstempel
        bestelldatum kaufdatum datumuhrzeit fecha listenedat playedat logtime eventts servertime dt day when
        timeadded ratedat position ordernumber seq sequence step
        clickedat modifiedat lastplayed collectortstamp fechacompra datecommande dateachat horodatage
        时间戳 时间 日期 行为时间 购买时间 下单时间 購入日時 購入日 注文日時 注文日 日時 日付 시간 날짜 구매일
    """,
    "action": """
        action event eventtype eventname actiontype behavior behaviour behaviortype behaviourtype
        interaction interactiontype activity activitytype aktion ereignis eventaction feedback type
        行为类型 行为 事件类型 事件 行動 イベント 행동
    """,
    "query": """
        query searchquery searchterm searchkeyword keyword keywords searchstring searchtext searchphrase
        searchstringtokens suchbegriff suchanfrage querytext term q
        搜索词 查询词 检索词 検索語 検索キーワード 검색어
    """,
    "request_id": """
        requestid impressionid searchid pageviewid queryid
    """,
    "quantity": """
        quantity qty menge anzahl lineitemquantity units stueck stück itemquantity cantidad
        quantityrefund quantite units 数量 购买数量 個数 수량
    """,
    "position": """
        rank slot displayposition
    """,
    "rating": """
        rating ratings stars bookrating userrating ratingvalue overall score bewertung note 评分 評価 평점
    """,
    "history": """
        history clickhistory userhistory clickedhistory behaviorhistory behaviourhistory
    """,
}
_ITEM_NAMES = {
    "title": """
        lineitemname title itemtitle producttitle productname itemname prodname movietitle booktitle
        videotitle name titel bezeichnung artikelbezeichnung produktname artikelname headline trackname
        songname caption productnametokens
        songtitle nombre nombreproducto nomproduit titre 商品名 商品名称 商品标题 标题 名称 品名 タイトル 상품명
    """,
    "text": """
        text description productdescription detaildesc itemdescription beschreibung abstract overview
        summary body content plot
        descripcion 描述 商品描述 説明 商品説明 설명
    """,
    "brand": """
        brand brandname brandid manufacturer marke hersteller vendor lineitemvendor publisher bookauthor
        artist artistname seller sellerid label author
        marca marque 品牌 ブランド メーカー 브랜드
    """,
    "category": """
        category categories categorycode categoryname productcategory itemcategory genres genre kategorie
        warengruppe producttype producttypename productgroupname department departmentname aisle topic
        subcategory categoryid catid cat tags class itemcategory2 googleproductcategory
        categoria categorie 商品类目 类目 类目id 商品类别 类别 分类 カテゴリ カテゴリー カテゴリ名 ジャンル
        카테고리
    """,
    "price": """
        price itemprice unitprice salesprice saleprice itemcost listprice productprice preis einzelpreis
        verkaufspreis lineitemprice precio pricelog2
        preciounitario prix prixunitaire 价格 单价 価格 単価 가격
    """,
}
EVENT_NAMES = {role: tuple(names.split()) for role, names in _EVENT_NAMES.items()}
ITEM_NAMES = {role: tuple(names.split()) for role, names in _ITEM_NAMES.items()}
USER_NAMES = (
    "age",
    "gender",
    "sex",
    "country",
    "city",
    "zip",
    "zipcode",
    "occupation",
    "registered",
    "signup",
    "location",
)

# Action -> its stage in the chain.
_STAGE_WORDS = (
    """
        impression impressions exposure shown show viewitemlist 曝光
    """,
    """
        view pv pageview productview viewitem detail detailview click clicks open read watch play listen
        visit ansicht klick selectitem viewcontent clicked viewed opened played watched 点击 浏览 閲覧 クリック
    """,
    """
        favorite favourite fav like collect save wishlist addtowishlist share addtofavourites merken liked saved
        收藏 お気に入り
    """,
    """
        cart carts addtocart add2cart basket warenkorb added 加购 カート
    """,
    """
        checkout begincheckout
    """,
    """
        purchase purchases buy buys order orders transaction conversion kauf bestellung sale bought
        purchased ordered converted conversions 购买 購入
    """,
)
STAGES = {word: stage for stage, words in enumerate(_STAGE_WORDS) for word in words.split()}


def bare(name: str) -> str:
    """A name in lower case without spaces and signs: ``Lineitem SKU`` and ``lineitem_sku`` are one."""
    return re.sub(r"[\W_]+", "", name.lower())


def stage_of(action: str) -> int | None:
    """The stage of an action in the feedback chain, by the word itself or by its stems; None for an unknown one."""
    known = STAGES.get(bare(action))
    return stage_by_words(action) if known is None else known


GROUPS = (
    "sessionid", "session", "visitid", "visit", "basketid", "basket", "cartid", "playlistid", "pid", "orderid",
    "ordernumber", "orderno", "invoiceno", "invoice", "transactionid", "receiptid", "receipt", "tripid",
)  # fmt: skip
"""What holds several items and may stand for a person where nothing names one."""
DESCRIPTIVE = re.compile("(?:name|title|type|category|price|count|url|description|status|group|class|age|gender|date)$")
"""Ends of names that say something about a person or thing and are no id."""
_ID_LIKE = re.compile(
    r"(?i:^id[_\W]|[_\W](?:id|key|sku|code|uri|uuid|slug|ref)s?$)|[a-z](?:I[Dd]|Key|Uri|URI|Code|Sku|SKU)s?$"
)
_NO_ITEM = re.compile(
    "session|order|invoice|transaction|request|event|review|visit|row|line|page|device|user|customer|client|store|shop|"
    "warehouse|categor|brand|date|time|currency|country|language|zip|postal|app|platform|parent|query|search"
)


def may_be_item(name: str) -> bool:
    """Whether an unknown column has a name as ids of things have it: ``jokeId``, ``clip_uri``."""
    return bool(_ID_LIKE.search(name)) and not _NO_ITEM.search(name.lower())


def flag_of(name: str) -> str | None:
    """The action that a true/false column speaks of, as ``is_click``; None where it speaks of none."""
    word = re.sub(r"^(?:is|has|was|did)", "", bare(name)) or bare(name)
    return word if word in STAGES else None


def rank_of(name: str, names: tuple[str, ...]) -> float | None:
    """How sure a column's name is for a role, from 0 (surest); None where it does not name the role."""
    whole, last = bare(name), bare(re.split(r"[.:]", name)[-1])
    for word, less_sure in ((whole, 0.0), (last, 0.5)):
        for form in (word, word.removesuffix("s")):
            if form in names:
                return names.index(form) + less_sure
    for index, known in enumerate(names):
        if len(known) > 4 and (whole.endswith(known) or whole.startswith(known)):
            return 100 + index
    return None
